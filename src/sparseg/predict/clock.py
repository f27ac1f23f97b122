"""A stopwatch for the steps of a case."""

from __future__ import annotations

import time


class Clock:
    """Writes the seconds since the last lap into a dict.

    Args:
        seconds: Step -> seconds, filled in place.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the time since the last lap, or the start."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self.last, 4)
        self.last = now
