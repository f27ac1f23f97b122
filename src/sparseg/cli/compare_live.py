"""What `sparseg compare` shows while it works: one line per run, then one per case."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from sparseg.compare.plan import Comparison, Run
    from sparseg.compare.train import RunWatch
    from sparseg.crossval.children import Outcome
    from sparseg.crossval.collect import CaseScores
    from sparseg.crossval.status import FoldStatus

_PLAIN_S = 30.0


def watch_runs(bar: Progress, found: Comparison) -> RunWatch:
    """A bar over all runs that says how far those at work are; without a terminal a line every 30 s."""
    from sparseg.compare.train import RunWatch, read_state

    states = [read_state(found, run) for run in found.runs]
    task = bar.add_task("runs", total=len(states), completed=sum(state.finished for state in states))
    watcher = _RunWatcher(bar, task, found.plan.budget.describe())
    return RunWatch(watcher.on_status, watcher.on_end)


class ScoreWatcher:
    """One line per case that is scored for the first time, and a bar over its windows."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def on_case(self, run: Run, case: str) -> Callable[[int, int], None]:
        """Start a case's bar."""
        for finished in self.bar.task_ids:
            self.bar.remove_task(finished)
        task = self.bar.add_task(f"{run.name}: {case}", total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def on_scores(self, run: Run, scores: CaseScores) -> None:
        """Print a case's Dice, or why it failed."""
        from sparseg.cli.output import print_error
        from sparseg.compare.results import case_mean

        if scores.error is not None:
            print_error(f"{run.name}: {scores.case}: {scores.error}")
        elif not scores.reused:
            mean = case_mean(scores.rows, "dice")
            dice = "no structure in it" if mean is None else f"Dice {mean:.3f}"
            sys.stdout.write(f"{run.name}: {scores.case}: {dice}\n")
            sys.stdout.flush()


class _RunWatcher:
    def __init__(self, bar: Progress, task: TaskID, budget: str) -> None:
        self.bar, self.task, self.budget = bar, task, budget
        self.said: dict[Run, float] = {}

    def on_status(self, run: Run, status: FoldStatus) -> None:
        """Say how far a run is."""
        parts = [f"{run.name}: step {status.step} ({self.budget})"]
        parts += [f"loss {status.loss:.3f}"] if math.isfinite(status.loss) else []
        parts += [f"validation Dice {status.dice:.3f}"] if math.isfinite(status.dice) else []
        text = ", ".join(parts)
        if not self.bar.disable:
            self.bar.update(self.task, description=text)
        elif time.monotonic() - self.said.get(run, -math.inf) > _PLAIN_S:
            self.said[run] = time.monotonic()
            sys.stderr.write(f"{text}\n")

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Say how a run ended."""
        self.bar.advance(self.task)
        reason = f": {outcome.message}" if outcome.message else ""
        sys.stdout.write(f"{run.name}: {outcome.end.value}{reason}\n")
        sys.stdout.flush()
