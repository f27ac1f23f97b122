"""All runs of a comparison as child processes, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparseg.compare.plan import SPLITS, Comparison, Run
from sparseg.crossval.children import End, FoldJob, Outcome, run_folds, train_command
from sparseg.crossval.status import FoldStatus, read_status
from sparseg.training.state import read_progress
from sparseg.volumes.atomic import write_bytes_atomically

NOT_STARTED = "not started"


@dataclass(frozen=True)
class RunState:
    """How far a run came.

    Attributes:
        run: Which one.
        finished: Whether it used up the budget.
        step: Steps done.
        minutes: Wall-clock minutes of training.
        error: Why it failed, if it did.
    """

    run: Run
    finished: bool = False
    step: int = 0
    minutes: float = 0.0
    error: str = ""

    def describe(self) -> str:
        """In a few words, as tables say it."""
        if self.finished:
            return f"done, {self.step} steps"
        if self.error:
            return f"failed at step {self.step}: {self.error}"
        return f"interrupted at step {self.step}" if self.step else NOT_STARTED


@dataclass(frozen=True)
class RunWatch:
    """What a caller may watch of the trainings.

    Attributes:
        on_status: Now and then while a run is at work.
        on_end: After a run ended.
    """

    on_status: Callable[[Run, FoldStatus], None]
    on_end: Callable[[Run, Outcome], None]


def read_state(found: Comparison, run: Run) -> RunState:
    """How far a run came, by its folder; it need not exist."""
    status = read_status(found.run_folder(run), run.fold)
    progress = read_progress(found.run_folder(run))
    minutes = progress.minutes if progress else 0.0
    if status.finished:
        return RunState(run, True, progress.step if progress else status.step, minutes)
    failure = _failure(found, run)
    error = failure.read_text(encoding="utf-8").strip() if failure.is_file() else ""
    return RunState(run, False, status.step, minutes, error)


def train_runs(
    found: Comparison,
    dataset: Path,
    slots: Sequence[Mapping[str, str]],
    watch: RunWatch,
    *,
    more: Sequence[str] = (),
) -> int | None:
    """Train what is not finished, as many at once as there are slots; a run that fails stops no other.

    Args:
        found: The comparison.
        dataset: As given on the command line.
        slots: From `make_slots`.
        watch: Watches.
        more: Further arguments of every `sparseg train`.

    Returns:
        The first signal that came, or None.
    """
    runs = [run for run in found.runs if not read_state(found, run).finished]
    jobs = [_job(found, run, number, dataset, more) for number, run in enumerate(runs)]
    monitor = _Monitor(found, runs, watch)
    _, received = run_folds(jobs, slots, monitor)
    return received


def _job(found: Comparison, run: Run, number: int, dataset: Path, more: Sequence[str]) -> FoldJob:
    """A job is known by its number among those at hand; runs of many variants share a fold."""
    folder = found.run_folder(run)
    command = train_command(
        dataset,
        folder,
        run.fold,
        config=found.settings(run),
        splits=found.folder / SPLITS,
        resume=read_status(folder, run.fold).started,
        more=more,
    )
    return FoldJob(number, command, folder, found.log(run))


class _Monitor:
    """Turns job numbers into runs, and keeps why one failed, which no run folder tells."""

    def __init__(self, found: Comparison, runs: Sequence[Run], watch: RunWatch) -> None:
        self.found, self.runs, self.watch = found, runs, watch

    def on_status(self, status: FoldStatus) -> None:
        self.watch.on_status(self.runs[status.fold], status)

    def on_end(self, outcome: Outcome) -> None:
        run = self.runs[outcome.fold]
        failure = _failure(self.found, run)
        failure.unlink(missing_ok=True)
        if outcome.end is End.FAILED:
            write_bytes_atomically(failure, outcome.message.encode())
        self.watch.on_end(run, outcome)


def _failure(found: Comparison, run: Run) -> Path:
    return found.log(run).with_suffix(".failed")
