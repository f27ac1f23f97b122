"""One case of a run: its three steps, what becomes of their errors, and its row.

Each step takes the job of the step before, and passes a failed one on, so that every error ends up in the
row of its case and in no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sparseg.errors import InputError, SparsegError
from sparseg.predict.case import CaseResult, LoadedCase, WindowResult
from sparseg.predict.fingerprints import file_sha256, input_sha256
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.predictor import Predictor
from sparseg.predict.preview import write_previews
from sparseg.predict.rows import Row, done_row, error_row
from sparseg.predict.run_folder import ROWS, RunFolder

Progress = Callable[[int, int], None]


@dataclass
class Job:
    """A case on its way.

    Attributes:
        case: Which.
        input_sha256: Hash of what it was read from.
        loaded: After the first step.
        windows: After the second step.
        result: After the last step.
        row: After the last step.
        error: Why there is no result.
    """

    case: PredictionCase
    input_sha256: str = ""
    loaded: LoadedCase | None = None
    windows: WindowResult | None = None
    result: CaseResult | None = None
    row: Row | None = None
    error: SparsegError | None = None


def predict_claimed(
    predictor: Predictor, case: PredictionCase, folder: RunFolder, on_progress: Progress | None = None
) -> Job:
    """Segment one case and write its row. Whoever calls has claimed the case where others could take it.

    What an earlier run left for the case is removed first. No error of the case is raised: it stands in the
    job and in the row.

    Args:
        predictor: Made with the settings of the folder's run.
        case: One of the folder's cases.
        folder: Made already.
        on_progress: Called after each window with (done, all).
    """
    job = run_job(predictor, load_job(predictor, case, folder), on_progress)
    return finish_job(predictor, job, folder)


def load_job(
    predictor: Predictor, case: PredictionCase, folder: RunFolder, known_sha256: str | None = None
) -> Job:
    """First step: remove what is left of earlier runs, read and prepare.

    Args:
        predictor: The predictor.
        case: The case.
        folder: The run's folder.
        known_sha256: Hash of the input, where it was computed a moment ago.
    """
    job = Job(case)
    start = time.perf_counter()
    with _errors_to(job):
        folder.discard(case)
        # Before reading: should the file change meanwhile, the hash is that of the old one and does not fit.
        sha256 = known_sha256 or input_hash(case)
        hashing = time.perf_counter() - start
        job.loaded = predictor.load(case.image, channels=case.channels, series_uid=case.series_uid)
        job.input_sha256 = sha256 or input_sha256(case)
        job.loaded.seconds["read"] = round(job.loaded.seconds["read"] + hashing, 4)
    return job


def input_hash(case: PredictionCase) -> str | None:
    """Hash of a case's files; None if one cannot be read, of which the reader of images says more."""
    try:
        return input_sha256(case)
    except OSError:
        return None


def run_job(predictor: Predictor, job: Job, on_progress: Progress | None = None) -> Job:
    """Second step: the network."""
    if job.loaded is not None and job.error is None:
        with _errors_to(job):
            job.windows = predictor.run_case(job.loaded, on_progress=on_progress)
    return job


def finish_job(predictor: Predictor, job: Job, folder: RunFolder) -> Job:
    """Last step: labels, previews and then the row; after an error nothing but the row."""
    if job.loaded is not None and job.windows is not None and job.error is None:
        with _errors_to(job):
            job.row = _write(predictor, job, job.loaded, job.windows, folder)
    job.loaded = job.windows = None
    if job.error is not None:
        job.result = None
        job.row = error_row(job.case, job.error, folder.key)
        # On a full disk there may be no room for the row either: the caller still has the error.
        with suppress(SparsegError, OSError):
            folder.discard(job.case)
            folder.write_row(job.row)
    return job


def _write(
    predictor: Predictor, job: Job, loaded: LoadedCase, windows: WindowResult, folder: RunFolder
) -> Row:
    case = job.case
    job.result = result = predictor.finish(loaded, windows, case.output)
    start = time.perf_counter()
    names = write_previews(folder.preview_folder(case.name), result.previews)
    previews = {name: f"{ROWS}/{case.name}/{file}" for name, file in names.items()}
    output_sha256 = file_sha256(case.output)
    maps_sha256 = {kind: file_sha256(folder.out / name) for kind, name in result.maps.items()}
    result.seconds["write"] = round(result.seconds["write"] + time.perf_counter() - start, 4)
    row = done_row(
        case,
        result,
        folder.key,
        input_sha256=job.input_sha256,
        output_sha256=output_sha256,
        maps_sha256=maps_sha256,
        previews=previews,
    )
    folder.write_row(row)
    return row


@contextmanager
def _errors_to(job: Job) -> Iterator[None]:
    """Keep an error on purpose, or one of the file system, in the job."""
    try:
        yield
    except SparsegError as error:
        job.error = error
    except OSError as error:
        job.error = file_error(error, job.case.image)


def file_error(error: OSError, where: Path) -> InputError:
    """What the system says about a file, as an error of the case: it must not cost the others."""
    converted = InputError(
        "the image must be readable and the output writable",
        received=error.strerror or type(error).__name__,
        remedy="check permissions and free space",
        where=error.filename or where,
        code="file-system",
    )
    converted.__cause__ = error
    return converted
