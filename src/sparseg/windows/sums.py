"""Weighted sums of overlapping windows, in memory or in a temporary file, and their exact mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparseg.shapes import Triple
from sparseg.windows.storage import Storage

Box = tuple[slice, slice, slice]
HOST = torch.device("cpu")
_FLOAT_BYTES = 4


class WeightedSums:
    """Adds up windows in float32.

    Nothing here takes memory once a sum began to change, so after `torch.OutOfMemoryError` every window is
    either in the sums or it is not.

    Args:
        num_channels: K.
        size: Voxels (H, W, D).
        weights: Importance map `[*roi]`, all positive.
        device: Where the sums lie.
        storage: Makes those on the CPU; the sums in a file are, bit for bit, those in memory. The sum of the
            weights, one float per voxel, always lies in memory.
        in_file: Put the K sums into a file however small they are.

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
        storage: Storage | None = None,
        in_file: bool = False,
    ) -> None:
        self._storage = storage or Storage()
        self._weights = weights.to(device)
        self._total = torch.zeros(*size, device=device)
        shape = (num_channels, *size)
        if torch.device(device) == HOST:
            self._sums = self._storage.zeros(shape, in_file=in_file)
        else:
            self._sums = torch.zeros(shape, device=device)

    def add(self, start: Triple, logits: Tensor) -> None:
        """Add one window's logits `[K, *roi]`, whose first voxel is `start`."""
        box = box_at(start, (logits.shape[1], logits.shape[2], logits.shape[3]))
        values = logits.to(self._sums)
        self._total[box].add_(self._weights)
        # Channel by channel, since a window in a file touches much more of it than it has voxels.
        num_bytes = _touched_bytes(logits[0].shape, self._total.shape)
        for sums, part in zip(self._sums, values, strict=True):
            self._storage.touch(num_bytes)
            sums[box].addcmul_(part, self._weights)

    def on_host(self, *, in_file: bool = False) -> WeightedSums:
        """The same sums on the CPU; these here stay as they are.

        Raises:
            ResourceError: no room for the file.
        """
        host = WeightedSums(
            len(self._sums), self._total.shape, self._weights.cpu(), storage=self._storage, in_file=in_file
        )
        host._total.copy_(self._total)
        for channel, part in self._parts():
            self._storage.touch(2 * _FLOAT_BYTES * host._total[part].numel())
            host._sums[channel, part].copy_(self._sums[channel, part])
        return host

    def mean(self, uncovered: Sequence[float] | None = None) -> Tensor:
        """Divide in place: the weighted mean `[K, H, W, D]`. Nothing can be added after it.

        Args:
            uncovered: K logits of the voxels that no window covers; needed if there are any.
        """
        missing = None
        if uncovered is not None:
            missing = self._total == 0
            self._total.masked_fill_(missing, 1.0)
        for channel, part in self._parts():
            self._storage.touch(_FLOAT_BYTES * self._total[part].numel())
            values = self._sums[channel, part].div_(self._total[part])
            if missing is not None and uncovered is not None:
                values.masked_fill_(missing[part], uncovered[channel])
        return self._sums

    @property
    def values(self) -> Tensor:
        """The K sums, or after `mean` the K logits, as they are."""
        return self._sums

    def _parts(self) -> Iterator[tuple[int, slice]]:
        """Channel by channel in slabs along the first axis, each small enough for the storage's budget."""
        length = len(self._total)
        slab = max(1, self._storage.step_bytes // (_FLOAT_BYTES * max(1, self._total[0].numel())))
        for channel in range(len(self._sums)):
            for first in range(0, length, slab):
                yield channel, slice(first, first + slab)


def _touched_bytes(window: Sequence[int], size: Sequence[int]) -> int:
    """Bytes of the pages that come into memory with one channel of a window: whole rows, plane by plane.

    At both ends of what a plane spans the system maps pages nearby as well, 64 KiB at most.
    """
    return window[0] * (_FLOAT_BYTES * window[1] * size[2] + 2 * 2**16)


def box_at(start: Triple, roi: Triple) -> Box:
    """Slices of the window that starts at `start`."""
    a, b, c = (slice(first, first + edge) for first, edge in zip(start, roi, strict=True))
    return (a, b, c)
