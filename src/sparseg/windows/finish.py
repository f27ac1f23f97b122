"""Slab-wise finish: from logits on the model grid to labels on a finer one, without full-size logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Mask = Callable[[Tensor], Tensor]
# Width of the pieces of a slab along the second axis: 14 classes of 16 x 32 x 160 voxels still fit a cache.
_TILE = 32


def finish_labels(
    logits: Tensor,
    positions: Sequence[np.ndarray],
    decide: Callable[[Tensor], Tensor],
    *,
    background: Mask | None = None,
    slab: int = 16,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Interpolate logits linearly at separable positions and decide, box by box in slabs of the first axis.

    Along the first axis a slab lies in one piece per channel, so logits in a file are read once from end to
    end. Boxes that only sure background reaches are not interpolated: they are 0.

    Args:
        logits: `[K, H, W, D]` float32 on the model grid.
        positions: For each axis, the model index (fractional) of every voxel of the target grid, ascending;
            positions outside the grid take its border value.
        decide: Logits `[K, s, w, d]` -> ids `[s, w, d]`.
        background: Logits `[K, s, W, D]` -> bool `[s, W, D]`, where the decision is surely 0 whatever is
            interpolated between such voxels; see `make_background_test`. None decides every voxel.
        slab: Target slices per step; bounds the memory at about K x slab x 32 x D' floats.
        out: Zeros `[H', W', D']` of an integer type to write into, of any memory layout; None makes uint8.

    Returns:
        Ids `[H', W', D']`: `out`, or the array made instead.
    """
    axes = [_Axis.at(where, size) for where, size in zip(positions, logits.shape[1:], strict=True)]
    if out is None:
        out = np.zeros([len(where) for where in positions], dtype=np.uint8)
    for first in range(0, len(positions[0]), slab):
        rows = slice(first, min(first + slab, len(positions[0])))
        for box in _boxes(logits, axes, rows, background):
            values = logits
            # The first axis first: it shrinks to the slab, so the other two work on little data.
            for number, (axis, part) in enumerate(zip(axes, box, strict=True), start=1):
                rest = [axes[other].reach(box[other]) for other in range(number, 3)] if number == 1 else []
                values = values[(slice(None), slice(None), *rest)] if rest else values
                values = _interpolate(values, number, axis, part, cut=number > 1)
            out[box] = decide(values).numpy()
    return out
