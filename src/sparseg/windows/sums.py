"""Weighted sums of overlapping windows, in memory or in a temporary file, and their exact mean."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sparseg.errors import ResourceError
from sparseg.shapes import Triple

Box = tuple[slice, slice, slice]
_FLOAT_BYTES = 4


class WeightedSums:
    """Adds up windows in float32.

    Args:
        num_channels: K.
        size: Voxels (H, W, D).
        weights: Importance map `[*roi]`, all positive.
        device: Where the sums lie.
        max_bytes: Memory the K + 1 sums may take on the CPU; beyond it those of the logits lie in a temporary
            file (in the folder of `tempfile.gettempdir()`) that is gone with the last tensor upon it. The
            result is the same, bit for bit.

    Raises:
        ResourceError: no room for the file.
    """

    def __init__(
        self,
        num_channels: int,
        size: Sequence[int],
        weights: Tensor,
        *,
        device: torch.device | str = "cpu",
        max_bytes: int | None = None,
    ) -> None:
        self._map: mmap.mmap | None = None
        self._budget, self._touched = max_bytes or 0, 0
        self._weights = weights.to(device)
        self._total = torch.zeros(*size, device=device)
        shape = (num_channels, *size)
        needed = _FLOAT_BYTES * (prod(shape) + prod(size))
        if max_bytes is not None and needed > max_bytes and torch.device(device).type == "cpu":
            self._map = _map_file(_FLOAT_BYTES * prod(shape))
            self._sums = torch.frombuffer(self._map, dtype=torch.float32).reshape(shape)
        else:
            self._sums = torch.zeros(shape, device=device)

    def add(self, start: Triple, logits: Tensor) -> None:
        """Add one window's logits `[K, *roi]`, whose first voxel is `start`."""
        box = box_at(start, (logits.shape[1], logits.shape[2], logits.shape[3]))
        self._sums[(slice(None), *box)].addcmul_(logits.to(self._sums), self._weights)
        self._total[box] += self._weights
        self._after_use(logits.numel())

    def mean(self, uncovered: Sequence[float] | None = None) -> Tensor:
        """Divide in place: the weighted mean `[K, H, W, D]`. Nothing can be added after it.

        Args:
            uncovered: K logits of the voxels that no window covers; needed if there are any.
        """
        missing = None
        if uncovered is not None:
            missing = self._total == 0
            self._total[missing] = 1.0
        for number, channel in enumerate(self._sums):
            channel.div_(self._total)
            if missing is not None and uncovered is not None:
                channel.masked_fill_(missing, uncovered[number])
            self._after_use(channel.numel())
        return self._sums

    def _after_use(self, num_values: int) -> None:
        """Give mapped pages back to the system now and then: what lies in a file need not stay in memory."""
        self._touched += _FLOAT_BYTES * num_values
        if self._map is not None and self._touched > self._budget and hasattr(mmap, "MADV_DONTNEED"):
            # The mapping is shared, so this drops no data: they are read from the file again.
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def box_at(start: Triple, roi: Triple) -> Box:
    """Slices of the window that starts at `start`."""
    a, b, c = (slice(first, first + edge) for first, edge in zip(start, roi, strict=True))
    return (a, b, c)


def _map_file(num_bytes: int) -> mmap.mmap:
    """Map a nameless file of zeros, which the system removes even after a crash."""
    try:
        with tempfile.TemporaryFile(prefix="sparseg-sums-") as file:
            file.truncate(num_bytes)
            if hasattr(os, "posix_fallocate"):
                # A full disk must be an error now; writing to a mapping without room kills the process.
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            return mmap.mmap(file.fileno(), num_bytes)
    except OSError as error:
        raise ResourceError(
            "the sums of a volume larger than the memory allowed must fit into a temporary file",
            received=f"{error.strerror or type(error).__name__} for {num_bytes / 2**30:.2f} GiB",
            remedy="set TMPDIR to a folder with more room, or allow more memory",
            where=tempfile.gettempdir(),
            code="sums-file",
        ) from error
