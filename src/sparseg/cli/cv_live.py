"""What `sparseg cv` shows while it works: one line per fold, then one per case."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from sparseg.crossval.children import Outcome
    from sparseg.crossval.collect import CaseScores
    from sparseg.crossval.status import FoldStatus

_PLAIN_S = 30.0


class FoldWatcher:
    """A bar per fold; where there is no terminal, a plain line per fold every 30 s."""

    def __init__(self, bar: Progress, max_steps: int) -> None:
        self.bar, self.max_steps = bar, max_steps
        self.tasks: dict[int, TaskID] = {}
        self.said: dict[int, float] = {}

    def on_status(self, status: FoldStatus) -> None:
        """Move a fold's bar."""
        text = describe(status, self.max_steps)
        if not self.bar.disable:
            if status.fold not in self.tasks:
                self.tasks[status.fold] = self.bar.add_task("", total=self.max_steps)
            self.bar.update(self.tasks[status.fold], completed=status.step, description=text)
        elif time.monotonic() - self.said.get(status.fold, -math.inf) > _PLAIN_S:
            self.said[status.fold] = time.monotonic()
            sys.stderr.write(f"{text}\n")

    def on_end(self, outcome: Outcome) -> None:
        """Say how a fold ended."""
        if outcome.fold in self.tasks:
            self.bar.remove_task(self.tasks.pop(outcome.fold))
        reason = f": {outcome.message}" if outcome.message else ""
        sys.stdout.write(f"fold {outcome.fold}: {outcome.end.value}{reason}\n")
        sys.stdout.flush()


class CaseWatcher:
    """One line per case, and a bar over its windows."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def on_case(self, case: str, fold: int) -> Callable[[int, int], None]:
        """Start a case's bar."""
        for finished in self.bar.task_ids:
            self.bar.remove_task(finished)
        task = self.bar.add_task(f"fold {fold}: {case}", total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def on_scores(self, scores: CaseScores) -> None:
        """Print a case's Dice, or why it failed."""
        from sparseg.cli.output import print_error

        if scores.error is not None:
            print_error(f"fold {scores.fold}: {scores.case}: {scores.error}")
            return
        values = [row["dice"] for row in scores.rows if row["dice"] is not None]
        dice = f"Dice {sum(values) / len(values):.3f}" if values else "no structure in it"
        again = " (predicted before)" if scores.reused else ""
        sys.stdout.write(f"fold {scores.fold}: {scores.case}: {dice}{again}\n")
        sys.stdout.flush()


def describe(status: FoldStatus, max_steps: int) -> str:
    """One line about a fold's training."""
    parts = [f"fold {status.fold}: step {status.step} of {max_steps}"]
    if math.isfinite(status.loss):
        parts.append(f"loss {status.loss:.3f}")
    if math.isfinite(status.dice):
        parts.append(f"validation Dice {status.dice:.3f}")
    return ", ".join(parts) if status.step else f"fold {status.fold}: preparing"
