"""Why a run stops before its schedule ends: a signal, a step that was asked for, or no more improvement."""

from __future__ import annotations

import os
import signal
import time
from enum import Enum

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

_SAME_SIGNAL_S = 1.0


class Reason(Enum):
    """How a run ended."""

    DONE = "the schedule is done"
    UNTIL = "the step asked for is reached"
    PATIENCE = "validation no longer improves"
    SIGNAL = "a signal came"


class SignalWatch:
    """Turns the first SIGINT, SIGTERM or SIGUSR1 into "finish the step and save"; a second one acts at once.

    SIGUSR1 is what schedulers such as Slurm send before they take the machine away. A second one within a
    second counts as the first: who manages processes often signals a command and its children both.

    Args:
        second_acts: False where launchers such as srun and torchrun may each pass on one and the same signal;
            torchrun itself kills what does not end in time.
    """

    def __init__(self, *, second_acts: bool = True) -> None:
        self.second_acts = second_acts
        self.received: int | None = None
        self.at = 0.0

    def __enter__(self) -> SignalWatch:
        self._old = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.received is None:
            self.received, self.at = number, time.monotonic()
        elif self.second_acts and time.monotonic() - self.at > _SAME_SIGNAL_S:
            signal.signal(number, self._old[signal.Signals(number)])
            os.kill(os.getpid(), number)


def is_stale(validations_since_best: int, patience: int | None) -> bool:
    """Whether `patience` validations in a row brought nothing better; never with None."""
    return patience is not None and validations_since_best >= patience
