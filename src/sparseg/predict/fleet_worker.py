"""One worker of a fleet: loads the models once, takes one case after another. Knows nothing of Ray."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparseg.errors import InputError, ResourceError, SparsegError
from sparseg.predict.case import CaseResult
from sparseg.predict.claims import SUFFIX, Claims, Owner, read_claim, this_process
from sparseg.predict.ensemble import load_predictor
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.job import Job, file_error, finish_job, input_hash, predict_claimed
from sparseg.predict.predictor import Predictor
from sparseg.predict.rows import Row
from sparseg.predict.run_folder import ROWS, RunFolder
from sparseg.predict.settings import PredictSettings

Prepare = Callable[[Predictor, Sequence[PredictionCase], Path], None]

MAX_TRIES = 2


# Ray Data writes what it handles to its logs, where names of cases have no place: neither shows its content.
@dataclass(frozen=True, repr=False)
class Orders:
    """What a worker is told; all paths are absolute, and the same on every machine.

    Attributes:
        models: Model folders.
        settings: How to run them.
        cases: All cases of the run.
        out: Output folder, on storage that all machines share.
        owner: The process that runs the fleet.
        beacon: Name of a claim of that process in the folder: who sees it, sees the folder.
        resume: Leave cases alone that are done; other processes may share the folder.
        threads: CPU threads of the worker.
        prepare: Called once with predictor, cases and folder before the first case.
    """

    models: tuple[Path, ...]
    settings: PredictSettings
    cases: tuple[PredictionCase, ...]
    out: Path
    owner: Owner
    beacon: str
    resume: bool = False
    threads: int = 1
    prepare: Prepare | None = None


@dataclass(frozen=True, repr=False)
class Outcome:
    """What became of a case.

    Attributes:
        number: Its place among the cases.
        result: If its labels were written.
        reused: Its row, if it was done before.
        why: Why an earlier result did not do.
        error: If it failed.
        unfit: The error is the worker's, which can do no case at all.
    None of result, row and error: another process is at work on it.
    """

    number: int
    result: CaseResult | None = None
    reused: Row | None = None
    why: str = ""
    error: SparsegError | None = None
    unfit: bool = False


class Worker:
    """Called with batches of one case; never raises what is wrong with a case or with this machine.

    Args:
        orders: What to do.
    """

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.unfit: SparsegError | None = None
        try:
            self._set_up()
        except SparsegError as error:
            self.unfit = _on_this_host(error)
        except OSError as error:
            self.unfit = _on_this_host(file_error(error, orders.out))

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Segment the cases of these numbers: `{"number": [n]}` -> `{"outcome": [Outcome]}`."""
        return {"outcome": [self.run(int(number)) for number in batch["number"]]}

    def run(self, number: int) -> Outcome:
        """Segment one case, unless it is done or in other hands."""
        if self.unfit is not None:
            return Outcome(number, error=self.unfit, unfit=True)
        case = self.orders.cases[number]
        try:
            # Of a run that has the folder for itself each case is handed out once.
            if not self.orders.resume:
                return self._predict(number, case, "")
            if not self.claims.take(case.name):
                return Outcome(number)
            outcome = self._predict_or_reuse(number, case)
            self.claims.drop(case.name)
            return outcome
        except OSError as error:
            return self._failed(number, case, file_error(error, case.image))

    def _set_up(self) -> None:
        orders = self.orders
        require_shared(orders)
        torch.set_num_threads(orders.threads)
        self.predictor = load_predictor(orders.models, orders.settings)
        self.folder = RunFolder(orders.out, orders.cases, self.predictor)
        if self.folder.key.settings_sha256 != orders.owner.settings_sha256:
            raise InputError(
                "every worker must have the same version of sparseg and the same models",
                received="others",
                remedy="install the same version on all machines, and share the models",
                where=orders.models[0],
                code="fleet-differs",
            )
        if orders.prepare is not None:
            orders.prepare(self.predictor, orders.cases, orders.out)
        # Open as long as the worker lives: it shows other machines that its claims are those of a living one.
        self.claims = Claims(self.folder.rows, this_process("resume", orders.owner.settings_sha256))
        self.claims.__enter__()

    def _predict_or_reuse(self, number: int, case: PredictionCase) -> Outcome:
        sha256 = input_hash(case)
        why = "" if sha256 is None else self.folder.why_redo(case, sha256)
        if why is None:
            return Outcome(number, reused=self.folder.row_of(case))
        return self._predict(number, case, why)

    def _predict(self, number: int, case: PredictionCase, why: str) -> Outcome:
        # Who runs the fleet gives the case of a dead worker to another one, for ever: this ends it.
        tries = self.folder.rows / f".{case.name}.{self.orders.owner.token}{SUFFIX}"
        with tries.open("ab") as file:
            file.write(b".")
        if tries.stat().st_size > MAX_TRIES:
            tries.unlink()
            return self._failed(number, case, _deadly(case))
        job = predict_claimed(self.predictor, case, self.folder)
        tries.unlink()
        if job.result is None:
            return Outcome(number, why=why, error=job.error)
        return Outcome(number, why=why, result=replace(job.result, previews={}))

    def _failed(self, number: int, case: PredictionCase, error: SparsegError) -> Outcome:
        finish_job(self.predictor, Job(case, error=error), self.folder)
        return Outcome(number, error=error)


def require_shared(orders: Orders) -> None:
    """Refuse a machine on which the output folder is missing, or another one of the same name.

    Raises:
        InputError: the folder of the run is not there.
    """
    seen = read_claim(orders.out / ROWS / f"{orders.beacon}{SUFFIX}")
    if seen != orders.owner:
        raise InputError(
            "every worker must see the output folder",
            received="a machine that does not",
            remedy="put --out, the images and the models on storage that all machines share, at one path",
            where=orders.out,
            code="fleet-folder",
        )


def _deadly(case: PredictionCase) -> ResourceError:
    return ResourceError(
        "a worker must live through its case",
        received=f"{MAX_TRIES} that died over it, killed or out of memory",
        remedy="give each worker more memory (fewer workers, --max-ram), or predict this case by itself",
        where=case.image,
        code="worker-died",
    )


def _on_this_host(error: SparsegError) -> SparsegError:
    """The same error, saying which machine of the fleet it is about."""
    error.args = (f"host {platform.node()}: {error}",)
    return error
