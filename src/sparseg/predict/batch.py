"""Many cases: one bad case never costs another, and the report says what became of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparseg.errors import SparsegError
from sparseg.predict.case import CaseResult
from sparseg.predict.claims import Claims, this_process
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.job import Job, Progress, file_error, finish_job, input_hash, load_job, run_job
from sparseg.predict.pipeline import run_steps
from sparseg.predict.predictor import Predictor
from sparseg.predict.rows import Row
from sparseg.predict.run_folder import RunFolder
from sparseg.predict.shards import Shard

_POLL_S = 0.5


class CaseMonitor(Protocol):
    """What a caller may watch, in the order of the cases; not always from the thread that started them."""

    def on_start(self, case: PredictionCase) -> Progress:
        """Before a case's windows; returns what is called after each with (done, all)."""

    def on_redo(self, case: PredictionCase, why: str) -> None:
        """Before a case whose result of an earlier run no longer holds."""

    def on_done(self, case: PredictionCase, result: CaseResult) -> None:
        """After a case's labels are written."""

    def on_reused(self, case: PredictionCase, row: Row) -> None:
        """After a case turned out to be done already, by an earlier run or another process."""

    def on_error(self, case: PredictionCase, error: SparsegError) -> None:
        """After a case failed; nothing was written for it."""

    def on_wait(self, num_cases: int) -> None:
        """Before waiting for cases that other processes are at work on."""


def predict_cases(
    predictor: Predictor,
    cases: Sequence[PredictionCase],
    out: Path,
    monitor: CaseMonitor,
    *,
    resume: bool = False,
    shard: Shard | None = None,
) -> list[SparsegError]:
    """Segment all cases and write their rows, `report.json` and `statistics.json`.

    A label file left by an earlier run is removed before a case is tried, so that after an error no old
    result looks like a new one. A single image that fails leaves nothing behind, not even a report.

    Args:
        predictor: The models and how they run.
        cases: All cases of the run.
        out: Output folder.
        monitor: Told what happens.
        resume: Leave cases alone whose labels, input, models and settings are those of their rows; other
            processes that resume may share the folder.
        shard: Which cases are this process's own; None takes all.

    Returns:
        The errors of the cases that failed, in order.

    Raises:
        InputError: another run is at work in the folder that does not share it.
        VolumeError: the reports cannot be written.
        OSError: the folder cannot be written to.
    """
    mine = list(cases) if shard is None else shard.of(cases)
    folder = RunFolder(out, cases, predictor)
    mode = "resume" if resume else "alone" if shard is None else f"shard {shard}"
    try:
        folder.make()
        with Claims(folder.rows, this_process(mode, folder.key.settings_sha256)) as claims:
            claims.enter_run(when_alone=folder.sweep)
            if not resume:
                folder.start_over(mine)
            batch = _Batch(predictor, folder, claims, monitor, resume=resume)
            try:
                batch.run(mine)
            finally:
                if len(cases) == 1 and batch.errors:
                    folder.forget()
                folder.refresh(at_once=True)
    finally:
        folder.remove_if_empty()
    return batch.errors


@dataclass
class _Task:
    """A case in the hands of this process, or the reason why there is nothing to do for it."""

    case: PredictionCase
    job: Job | None = None
    reused: Row | None = None
    why: str = ""


class _Batch:
    """The cases of this process, taken through the steps until each is done by somebody."""

    def __init__(
        self,
        predictor: Predictor,
        folder: RunFolder,
        claims: Claims,
        monitor: CaseMonitor,
        *,
        resume: bool,
    ) -> None:
        self.predictor = predictor
        self.folder = folder
        self.claims = claims
        self.monitor = monitor
        self.resume = resume
        self.errors: list[SparsegError] = []
        self._elsewhere: list[PredictionCase] = []

    def run(self, cases: Sequence[PredictionCase]) -> None:
        """Do all that others do not do; then look again at what those had claimed, until nothing is left."""
        overlap = self.predictor.settings.cases_overlap
        waited: list[PredictionCase] | None = None
        while cases:
            self._elsewhere = []
            run_steps(cases, self._load, self._run, self._finish, overlap=overlap and len(cases) > 1)
            cases = self._elsewhere
            if cases and cases != waited:
                self.monitor.on_wait(len(cases))
            if cases:
                waited = cases
                time.sleep(_POLL_S)

    def _load(self, case: PredictionCase) -> _Task:
        task = _Task(case)
        try:
            if not self.claims.take(case.name):
                return task
            sha256 = input_hash(case) if self.resume else None
            if sha256 is not None:
                why = self.folder.why_redo(case, sha256)
                if why is None:
                    task.reused = self.folder.row_of(case)
                    return task
                task.why = why
            task.job = load_job(self.predictor, case, self.folder, sha256)
        except OSError as error:
            with suppress(OSError):
                self.folder.discard(case)
            task.job = Job(case, error=file_error(error, case.image))
        return task

    def _run(self, task: _Task) -> _Task:
        if task.job is not None and task.job.error is None:
            if task.why:
                self.monitor.on_redo(task.case, task.why)
            task.job = run_job(self.predictor, task.job, self.monitor.on_start(task.case))
        return task

    def _finish(self, task: _Task) -> None:
        case, job = task.case, task.job
        if task.reused is not None:
            self.monitor.on_reused(case, task.reused)
        elif job is None:
            self._elsewhere.append(case)
            return
        else:
            finish_job(self.predictor, job, self.folder)
            if job.error is not None:
                self.errors.append(job.error)
                self.monitor.on_error(case, job.error)
            elif job.result is not None:
                self.monitor.on_done(case, job.result)
        self._refresh()
        self.claims.drop(case.name)

    def _refresh(self) -> None:
        # A single image that failed leaves nothing behind.
        if len(self.folder.cases) == 1 and self.errors:
            return
        # A disk that is full now may have room at the end; the rows say all that the reports say.
        with suppress(SparsegError, OSError):
            self.folder.refresh()
