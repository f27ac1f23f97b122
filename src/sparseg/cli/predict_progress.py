"""What `sparseg predict` shows while it works: a line per case, bars over its windows and over all cases."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from sparseg.errors import SparsegError
    from sparseg.predict.case import CaseResult
    from sparseg.predict.inputs import PredictionCase
    from sparseg.predict.rows import Row


class Watcher:
    """Prints one line per case; in a terminal, bars too.

    Args:
        bar: Where the bars are.
        num_cases: Of this process.
    """

    def __init__(self, bar: Progress, num_cases: int) -> None:
        self.bar = bar
        self.clock = TimeLeft(num_cases)
        self._lock = threading.Lock()
        self._total = bar.add_task("all cases", total=num_cases) if num_cases > 1 else None

    def on_start(self, case: PredictionCase) -> Callable[[int, int], None]:
        """Start a case's bar."""
        for other in self.bar.task_ids:
            if other != self._total:
                self.bar.remove_task(other)
        task = self.bar.add_task(case.name, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def on_redo(self, case: PredictionCase, why: str) -> None:
        """Say why an earlier result does not do."""
        self._print(f"{case.name}: redone: {why}")

    def on_done(self, case: PredictionCase, result: CaseResult) -> None:
        """Print a case's line."""
        from sparseg.cli.speed_options import deadline_warning
        from sparseg.predict.case import WINDOW_PARTS

        steps = {name: value for name, value in result.seconds.items() if name not in WINDOW_PARTS}
        seconds = ", ".join(f"{name} {value:.2f}" for name, value in steps.items())
        skipped = f", {result.num_windows_skipped} empty skipped" if result.num_windows_skipped else ""
        windows = f"{result.num_windows} windows{skipped}"
        line = f"{case.name}: {case.output} ({result.total_seconds:.1f} s: {seconds}; {windows})"
        self._print(line + self._count(worked=True))
        for found in result.warnings:
            sys.stderr.write(f"warning: {case.name}: {found.message} [{found.code}]\n")
        warning = deadline_warning(result)
        if warning is not None:
            sys.stderr.write(f"warning: {case.name}: {warning}\n")

    def on_reused(self, case: PredictionCase, row: Row) -> None:  # noqa: ARG002
        """Print the line of a case that was done already."""
        self._print(f"{case.name}: {case.output} (reused)" + self._count(worked=False))

    def on_error(self, case: PredictionCase, error: SparsegError) -> None:
        """Print a case's error."""
        from sparseg.cli.output import print_error

        self._count(worked=True)
        text = str(error)
        print_error(text if str(case.image) in text else f"{case.image}: {text}")

    def on_wait(self, num_cases: int) -> None:
        """Say that the rest is in other hands."""
        self._print(f"waiting for {num_cases} case{'s'[: num_cases > 1]} that other processes are at work on")

    def _count(self, *, worked: bool) -> str:
        """Count a case, and say how many there are left where there is more than one."""
        self.clock.count(worked=worked)
        if self._total is None:
            return ""
        self.bar.update(self._total, completed=self.clock.done, description=self.clock.shown)
        return f", {self.clock.shown}"

    def _print(self, line: str) -> None:
        with self._lock:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


class TimeLeft:
    """How many cases are done and how long the others will take, by the mean of those worked on so far.

    Args:
        total: Number of cases.
        now: A clock, in seconds.
    """

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self._worked = 0
        self._now = now
        self._start = now()

    def count(self, *, worked: bool) -> None:
        """Count a case; one that was only looked at says nothing about the others' time."""
        self.done += 1
        self._worked += worked

    @property
    def shown(self) -> str:
        """E.g. `3 of 20, 2 min left`."""
        text = f"{self.done} of {self.total}"
        left = self.total - self.done
        if not left or not self._worked:
            return text
        return f"{text}, {_duration((self._now() - self._start) / self._worked * left)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
