"""Why a run stops before its schedule ends: a signal, a step that was asked for, or no more improvement."""

from __future__ import annotations

import signal
from enum import Enum

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Reason(Enum):
    """How a run ended."""

    DONE = "the schedule is done"
    UNTIL = "the step asked for is reached"
    PATIENCE = "validation no longer improves"
    SIGNAL = "a signal came"


class SignalWatch:
    """Turns the first SIGINT, SIGTERM or SIGUSR1 into "finish the step and save"; the second acts at once.

    SIGUSR1 is what schedulers such as Slurm send before they take the machine away.

    Args:
        second_acts: False where launchers such as srun and torchrun may each pass on one and the same signal;
            torchrun itself kills what does not end in time.
    """

    def __init__(self, *, second_acts: bool = True) -> None:
        self.second_acts = second_acts
        self.received: int | None = None

    def __enter__(self) -> SignalWatch:
        self._old = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.received = number
        if self.second_acts:
            signal.signal(number, self._old[signal.Signals(number)])


def is_stale(validations_since_best: int, patience: int | None) -> bool:
    """Whether `patience` validations in a row brought nothing better; never with None."""
    return patience is not None and validations_since_best >= patience
