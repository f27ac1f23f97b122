"""Rules for the use of the device: precision, and processes that prepare crops."""

from __future__ import annotations

import torch

from sparseg.datasets.parallel import default_workers
from sparseg.planning.choice import Choice

MAX_WORKERS = 8


def choose_precision(device: str) -> Choice[str]:
    """Choose bf16 on a GPU that computes it, fp32 everywhere else."""
    if device.startswith("cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return Choice("bf16", "mixed precision: faster on this GPU, with the range of fp32")
    if device.startswith("cuda"):
        return Choice("fp32", "this GPU does not compute bf16")
    return Choice("fp32", "on a CPU lower precision is slower")


def choose_num_workers(device: str) -> Choice[int]:
    """Choose up to 8 processes beside a GPU, and none without one."""
    if device.startswith("cuda"):
        count = max(1, min(MAX_WORKERS, default_workers() - 1))
        return Choice(count, f"one per spare processor, at most {MAX_WORKERS}")
    return Choice(0, "without a GPU every processor is busy with the network")
