"""What a caller may watch of a run: one record per step, one call per validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class StepInfo:
    """One optimiser step, as the live line and the trackers show it.

    Attributes:
        step: Optimiser steps done.
        max_steps: Steps of the whole schedule.
        loss: Loss of this step; NaN where the step was skipped.
        lr: Learning rate behind the blocks, that is without layer decay.
        seconds: Wall-clock time of the step, waiting for crops included.
        crops_per_second: Crops of all processes over `seconds`.
        data_wait: Share of `seconds` spent waiting for crops, 0 to 1.
        share_done: Share of the schedule that is over, 0 to 1, by steps or by the time limit.
        minutes: Wall-clock minutes of training so far, over all resumptions.
        tokens: Patch tokens that each stage works on, the full grid first.
        memory_bytes: Memory in use, see `memory_in_use`.
        skipped: Steps skipped so far because a loss or gradient was not finite.
    """

    step: int
    max_steps: int
    loss: float
    lr: float
    seconds: float
    crops_per_second: float
    data_wait: float
    share_done: float
    minutes: float
    tokens: tuple[int, ...] = ()
    memory_bytes: int = 0
    skipped: int = 0


class Monitor(Protocol):
    """What a caller may watch; the command line draws its progress line through it."""

    def on_step(self, info: StepInfo) -> None:
        """After every optimiser step."""

    def on_validation(
        self, step: int, dice: dict[str, float], mean: float, best: float, best_step: int
    ) -> None:
        """After every validation: Dice per output (NaN where undefined), their mean, the best mean so far."""


class Silent:
    """A monitor for callers that watch nothing."""

    def on_step(self, info: StepInfo) -> None:
        """Nothing."""

    def on_validation(
        self, step: int, dice: dict[str, float], mean: float, best: float, best_step: int
    ) -> None:
        """Nothing."""


def memory_in_use(device: torch.device | str) -> int:
    """Bytes that training takes: the peak of allocated tensors on CUDA, else this process's resident memory.

    On Apple's devices it is what the driver holds. Worker processes are not counted.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if kind == "mps":
        return int(torch.mps.driver_allocated_memory())
    import psutil

    return int(psutil.Process().memory_info().rss)
