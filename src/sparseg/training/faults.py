"""Faults that torch reports in its own words, said in ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sparseg.errors import ResourceError

logger = logging.getLogger("sparseg")
MAX_SAVED_BATCHES = 3


@contextmanager
def explain_faults(folder: Path) -> Iterator[None]:
    """Turn lack of memory and the death of a loader worker into errors that say what to lower.

    Raises:
        ResourceError: out of device memory, or a worker that was killed.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            "a training step must fit the memory of the device",
            received=str(error).split(". ")[0],
            remedy="lower batch_size (accumulate keeps the effective batch), set activation_checkpointing: "
            "true, or use a smaller model.roi_size; then --resume",
            where=folder,
            code="device-memory",
        ) from error
    except RuntimeError as error:
        if not is_worker_death(error):
            raise
        raise ResourceError(
            "the processes that cut crops must stay alive",
            received=str(error).splitlines()[0],
            remedy="the system most likely lacked memory (or /dev/shm): lower num_workers, then --resume",
            where=folder,
            code="worker-killed",
        ) from error


def is_worker_death(error: BaseException) -> bool:
    """Whether torch says that a loader worker died.

    Its signal handler raises this wherever the main process happens to be, so that code which explains
    a RuntimeError of its own must let this one pass.
    """
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def save_bad_batch(
    folder: Path, step: int, batches: list[tuple[Tensor, Tensor]], *, rank: int = 0
) -> Path | None:
    """Keep the crops of a step whose loss was not finite as `bad_batch_STEP.pt`; the first few only.

    Processes beside the main one add their rank to the name.

    Returns:
        The file, or None if there are enough already.
    """
    suffix = f"_rank{rank}" if rank else ""
    own = re.compile(rf"bad_batch_\d+{suffix}\.pt")
    if sum(own.fullmatch(path.name) is not None for path in folder.iterdir()) >= MAX_SAVED_BATCHES:
        return None
    path = folder / f"bad_batch_{step}{suffix}.pt"
    torch.save({"images": [image for image, _ in batches], "labels": [label for _, label in batches]}, path)
    return path
