"""Bounding box of the foreground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparseg.shapes import Triple


def foreground_box(
    array: np.ndarray, *, threshold: float | None, spacing: Sequence[float], margin_mm: float
) -> tuple[Triple, Triple]:
    """Return start and stop (exclusive) of the box around all foreground voxels of `[C,H,W,D]`.

    The plain box is taken, not the largest component: a stray voxel then only costs time, while a component
    could lose an arm or the second leg.

    Args:
        array: Image in its own units.
        threshold: Foreground is above this value in any channel; None: not zero in any channel.
        spacing: Voxel edges in mm, in array-axis order.
        margin_mm: Width added on every side, cut off at the edge of the volume.

    Returns:
        The whole volume if nothing is foreground.
    """
    foreground = array != 0 if threshold is None else array > threshold
    mask: np.ndarray = np.any(foreground, axis=0)
    start, stop = [0, 0, 0], list(mask.shape)
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if hits.size:
            margin = int(np.ceil(margin_mm / spacing[axis]))
            start[axis] = max(0, int(hits[0]) - margin)
            stop[axis] = min(mask.shape[axis], int(hits[-1]) + 1 + margin)
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])
