"""Many cases: one bad case never costs another, and the report says what became of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from sparseg.errors import InputError, SparsegError
from sparseg.predict.case import CaseResult
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.predictor import Predictor
from sparseg.predict.statistics import LabelStatistics
from sparseg.volumes.atomic import write_bytes_atomically

REPORT = "report.json"
STATISTICS = "statistics.json"


class CaseMonitor(Protocol):
    """What a caller may watch; the command line prints one line per case through it."""

    def on_start(self, case: PredictionCase) -> Callable[[int, int], None]:
        """Before a case; returns what is called after each window with (done, all)."""

    def on_done(self, case: PredictionCase, result: CaseResult) -> None:
        """After a case's labels are written."""

    def on_error(self, case: PredictionCase, error: SparsegError) -> None:
        """After a case failed; nothing was written for it."""


def predict_cases(
    predictor: Predictor, cases: Sequence[PredictionCase], out: Path, monitor: CaseMonitor
) -> list[SparsegError]:
    """Segment all cases and write `report.json` and `statistics.json`.

    A label file left by an earlier run is removed before a case is tried, so that after an error no old
    result looks like a new one.

    Returns:
        The errors of the cases that failed, in order.
    """
    rows: list[dict[str, Any]] = []
    statistics: dict[str, dict[str, LabelStatistics]] = {}
    errors = []
    for stale in (REPORT, STATISTICS):  # whatever they say is not about this run
        (out / stale).unlink(missing_ok=True)
    for case in cases:
        progress = monitor.on_start(case)
        try:
            result = _predict_case(predictor, case, progress)
        except SparsegError as error:
            errors.append(error)
            rows.append({"case": case.name, "status": "error", "code": error.code, "message": str(error)})
            monitor.on_error(case, error)
        else:
            rows.append(
                {
                    "case": case.name,
                    "status": "ok",
                    "output": case.output.name,
                    "num_windows": result.num_windows,
                    "num_windows_skipped": result.num_windows_skipped,
                    "seconds": result.seconds,
                    "volumes_ml": result.volumes_ml,
                    **({} if result.cleanup is None else {"cleanup": asdict(result.cleanup)}),
                }
            )
            statistics[case.name] = result.statistics
            monitor.on_done(case, result)
        # A single image that failed leaves nothing behind, not even a report.
        if len(cases) > 1 or not errors:
            if statistics:
                write_statistics(out, statistics)
            write_report(out, predictor, rows)
    return errors


def _predict_case(
    predictor: Predictor, case: PredictionCase, on_progress: Callable[[int, int], None]
) -> CaseResult:
    try:
        case.output.unlink(missing_ok=True)
        return predictor.predict_file(
            case.image,
            case.output,
            channels=case.channels,
            series_uid=case.series_uid,
            on_progress=on_progress,
        )
    except OSError as error:
        # One folder without permission must not cost the other cases.
        raise InputError(
            "the image must be readable and the output writable",
            received=error.strerror or type(error).__name__,
            remedy="check permissions and free space",
            where=error.filename or case.image,
            code="file-system",
        ) from error


def write_report(out: Path, predictor: Predictor, rows: Sequence[dict[str, Any]]) -> None:
    """Write `report.json` in one step.

    Raises:
        VolumeError: the folder cannot be written to.
    """
    models = [
        {
            "model": member.name,
            "weights_sha256": member.card.weights_sha256,
            "token_counts": member.net.token_counts(),
            "overlap": member.overlap,
        }
        for member in predictor.members
    ]
    # Several models have no one value; each row of `models` has its own.
    alone = models[0] if len(models) == 1 else {}
    report = {
        "token_counts": alone.get("token_counts"),
        "weights_sha256": alone.get("weights_sha256"),
        "overlap": alone.get("overlap"),
        "models": models,
        "device": predictor.settings.device,
        "mirror": predictor.settings.mirror,
        "keep_empty": predictor.settings.keep_empty,
        "reading": asdict(predictor.settings.reading),
        "cleanup": asdict(predictor.settings.cleanup),
        "cases": list(rows),
    }
    content = (json.dumps(report, indent=2) + "\n").encode()
    out.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(out / REPORT, content)


def write_statistics(out: Path, statistics: Mapping[str, Mapping[str, LabelStatistics]]) -> None:
    """Write `statistics.json` in one step: case -> label -> the fields of `LabelStatistics`.

    Cases that failed are not in it.

    Raises:
        VolumeError: the folder cannot be written to.
    """
    cases = {
        case: {name: asdict(found) for name, found in labels.items()} for case, labels in statistics.items()
    }
    content = json.dumps({"cases": cases}, indent=2, allow_nan=False) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(out / STATISTICS, content.encode())
