"""What several processes must agree on at every step. With one process everything is what it was."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object


def mean_over_ranks(accelerator: Accelerator, value: torch.Tensor) -> float:
    """Mean of a scalar tensor over all processes; NaN if it is NaN anywhere."""
    if accelerator.num_processes == 1:
        return float(value)
    return float(accelerator.reduce(value.detach().float(), reduction="mean"))


def largest_over_ranks(accelerator: Accelerator, value: int) -> int:
    """Largest of an integer over all processes, such as the number of a signal that only one received."""
    if accelerator.num_processes == 1:
        return value
    numbers: list[int] = gather_object([value])
    return max(numbers)


def of_main_rank(accelerator: Accelerator, value: float) -> float:
    """The main process's value, for clocks that must not differ."""
    if accelerator.num_processes == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators (drop path, selection noise) for one step of one process.

    A step then depends on nothing that happened before it, so that a resumed run is the uninterrupted one.
    """
    # Odd constants spread neighbouring steps and ranks over 63 bits (splitmix64's and another prime).
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
    torch.manual_seed(mixed)
