"""Slab-wise finish: from logits on the model grid to labels on a finer one, without full-size logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Width of the pieces of a slab along the second axis: 14 classes of 16 x 32 x 160 voxels still fit a cache.
_TILE = 32


def finish_labels(
    logits: Tensor,
    positions: Sequence[np.ndarray],
    decide: Callable[[Tensor], Tensor],
    *,
    background: Callable[[Tensor], Tensor] | None = None,
    slab: int = 16,
    on_slab: Callable[[int, Tensor], None] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Interpolate logits linearly at separable positions and decide, box by box in slabs of the first axis.

    Along the first axis a slab lies in one piece per channel, so logits in a file are read once from end to
    end. Boxes within reach of nothing but sure background are not interpolated; they stay 0.

    Args:
        logits: `[K, H, W, D]` float32 on the model grid.
        positions: For each axis, the model index (fractional) of every voxel of the target grid; positions
            outside the grid take its border value.
        decide: Logits `[K, s, w, d]` -> ids `[s, w, d]`.
        background: Logits `[K, s, W, D]` -> bool `[s, W, D]`, where the decision is surely 0 whatever is
            interpolated between such voxels; see `make_background_test`. None decides every voxel.
        slab: Target slices per step; bounds the memory at a few times K x slab x 32 x D' floats.
        on_slab: Called with a slab's first target slice and its logits `[K, s, W', D']`, in order. It gets
            every voxel: no background is left out then, and the memory is K x slab x W' x D' floats.
        out: Zeros `[H', W', D']` of an integer type to write into, in any memory layout; None makes uint8.

    Returns:
        Ids `[H', W', D']`: `out`, or the array made instead.
    """
    first, *others = (_Axis.at(axis, size) for axis, size in zip(positions, logits.shape[1:], strict=True))
    if out is None:
        out = np.zeros([len(axis) for axis in positions], dtype=np.uint8)
    whole = slice(0, len(positions[1])), slice(0, len(positions[2]))
    for start in range(0, len(first.low), slab):
        part = first.part(slice(start, start + slab))
        reach = logits[:, part.reach]
        for columns, depths in _open_boxes(reach, others, background) if on_slab is None else [whole]:
            across = [axis.part(piece) for axis, piece in zip(others, (columns, depths), strict=True)]
            values = reach[:, :, across[0].reach, across[1].reach]
            # The first axis first: it shrinks to the slab, so the other two work on little data.
            for dim, axis in enumerate((part, *across), start=1):
                values = _interpolate(values, dim, axis)
            if on_slab is not None:
                on_slab(start, values)
            out[start : start + slab, columns, depths] = decide(values).numpy()
    return out


class _Axis(NamedTuple):
    """For each target voxel along an axis the two model voxels it lies between, and the second one's share.

    `low` and `high` count from `first`.
    """

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray
    first: int = 0

    @classmethod
    def at(cls, positions: np.ndarray, size: int) -> _Axis:
        where = np.clip(positions, 0, size - 1)
        low = np.floor(where).astype(np.int64)
        share = (where - low).astype(np.float32)
        # On a model voxel the next one is not needed, and within the border there is none.
        return cls(low, np.where(share > 0, low + 1, low), share)

    def part(self, piece: slice) -> _Axis:
        """The target voxels of `piece`, counted from the first model voxel they need."""
        low, high = self.low[piece], self.high[piece]
        first = int(low.min())
        return _Axis(low - first, high - first, self.share[piece], first)

    @property
    def reach(self) -> slice:
        """The model voxels needed, of the axis that `part` was called on."""
        return slice(self.first, self.first + int(self.high.max()) + 1)


def _open_boxes(
    logits: Tensor, axes: Sequence[_Axis], background: Callable[[Tensor], Tensor] | None
) -> Iterator[tuple[slice, slice]]:
    """Yield boxes of target voxels (second and third axis) that hold all those not surely background."""
    columns, depths = axes
    tiles = [slice(start, start + _TILE) for start in range(0, len(columns.low), _TILE)]
    if background is None:
        yield from ((tile, slice(0, len(depths.low))) for tile in tiles)
        return
    unsure = (~background(logits)).any(dim=0).cpu().numpy()
    by_column = unsure[columns.low] | unsure[columns.high]
    wanted = by_column[:, depths.low] | by_column[:, depths.high]
    for tile in tiles:
        hits = np.flatnonzero(wanted[tile].any(axis=0))
        if hits.size:
            yield tile, slice(int(hits[0]), int(hits[-1]) + 1)


def _interpolate(values: Tensor, dim: int, axis: _Axis) -> Tensor:
    if not axis.share.any() and np.array_equal(axis.low, np.arange(len(axis.low))):
        # An axis that was not resampled keeps its very values.
        return values
    shape = [1] * values.ndim
    shape[dim] = len(axis.low)
    low, high = (values.index_select(dim, torch.from_numpy(index)) for index in (axis.low, axis.high))
    return torch.lerp(low, high, torch.from_numpy(axis.share).reshape(shape))
