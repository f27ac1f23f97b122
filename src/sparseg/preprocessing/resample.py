"""Separable resampling with sample positions exact in millimetres.

Voxel centres carry the values. Old and new grid share their *centre* and the new one covers at least the old
extent (half a voxel beyond the outer centres). Unlike sharing the first voxel, this does not depend on the
direction an axis was stored in, so one anatomy gives one model input whatever its 48 possible axis orders.
Positions beyond the outer centres take the outer value.

Making the grid coarser by a factor r > 1 widens the linear (triangle) kernel to r old voxels, as area filters
do: plain linear interpolation would look at 2 voxels out of r and alias noise and thin structures. The
widened kernel is corrected to reproduce straight ramps exactly, so nothing moves; at r <= 1 it is plain
linear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from sparseg.shapes import Triple

# Planes that are resampled at a time.
_PIECE = 16


def num_voxels(num_old: int, ratio: float) -> int:
    """Return how many voxels of `ratio` old edges cover `num_old` voxels (1e-3 voxel of tolerance)."""
    return max(1, int(np.ceil(num_old / ratio - 1e-3)))


def positions(num_new: int, num_old: int, ratio: float) -> np.ndarray:
    """Return the old index, fractional, of every new voxel centre; `ratio` is new edge / old edge."""
    return (np.arange(num_new) - (num_new - 1) / 2) * ratio + (num_old - 1) / 2


def axis_weights(where: np.ndarray, num_old: int, *, half_width: float = 1.0) -> sparse.csr_array:
    """Return the interpolation matrix `[len(where), num_old]`, float32; every row sums to one.

    Args:
        where: Old index of each new sample; clamped to [0, num_old - 1].
        num_old: Voxels along the old axis.
        half_width: Reach of the triangle kernel in old voxels, >= 1; 1 is linear interpolation.
    """
    where = np.clip(where, 0, num_old - 1)
    reach = int(np.ceil(half_width))
    taps = np.floor(where)[:, None] + np.arange(-reach, reach + 2)
    distance = taps - where[:, None]
    weights = np.clip(1 - np.abs(distance) / half_width, 0, None)
    weights[(taps < 0) | (taps > num_old - 1)] = 0
    weights = _reproduce_ramps(weights, distance)
    rows = np.broadcast_to(np.arange(len(where))[:, None], taps.shape)
    used = weights != 0
    entries = (weights[used].astype(np.float32), (rows[used], taps[used].astype(np.int64)))
    return sparse.csr_array(entries, shape=(len(where), num_old))


def _reproduce_ramps(weights: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Tilt each row (local linear fit) so that its weights sum to one and its first moment is zero."""
    m0, m1, m2 = ((weights * distance**power).sum(axis=1, keepdims=True) for power in range(3))
    determinant = m0 * m2 - m1 * m1
    # A row with one tap (a position on a voxel centre, or a one-voxel axis) has nothing to tilt.
    fits = determinant > 1e-9 * m0 * m0
    tilted = weights * (m2 - m1 * distance) / np.where(fits, determinant, 1)
    result: np.ndarray = np.where(fits, tilted, weights / m0)
    return result


def apply_along(matrix: sparse.csr_array, array: np.ndarray, axis: int) -> np.ndarray:
    """Multiply `matrix` [n, m] along `axis` (of length m) of a float32 array."""
    front = np.moveaxis(array, axis, 0)
    result = matrix @ np.ascontiguousarray(front).reshape(front.shape[0], -1)
    return np.moveaxis(result.reshape(matrix.shape[0], *front.shape[1:]), 0, axis)


def apply_weights(matrices: Sequence[sparse.csr_array | None], array: np.ndarray) -> np.ndarray:
    """Resample `[H,W,D]` along the axes that have a matrix; None leaves an axis untouched.

    Axes that shrink most come first, which keeps the intermediate arrays small. All but the last are done in
    pieces that lie across it: a piece stays in the cache, and the whole array is never copied to float32 or
    to another memory order.
    """
    order = sorted(
        (axis for axis in range(3) if matrices[axis] is not None),
        key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1],  # type: ignore[union-attr]
    )
    # An axis without a matrix is best, for then nothing is left to do behind the pieces.
    across = next((axis for axis in (2, 1, 0) if matrices[axis] is None), order[-1] if order else 2)
    inner = [(axis, matrix) for axis in order if axis != across and (matrix := matrices[axis]) is not None]
    size = list(array.shape)
    for axis, matrix in inner:
        size[axis] = matrix.shape[0]
    result = np.empty(size, np.float32)
    for start in range(0, array.shape[across], _PIECE):
        part = tuple(slice(start, start + _PIECE) if axis == across else slice(None) for axis in range(3))
        piece = array[part].astype(np.float32, copy=False)
        for axis, matrix in inner:
            piece = apply_along(matrix, piece, axis)
        result[part] = piece
    rest = matrices[across]
    return result if rest is None else np.ascontiguousarray(apply_along(rest, result, across))


def resampling_weights(
    old: Triple, new: Triple, ratios: Sequence[float], *, antialias: bool = True
) -> list[sparse.csr_array | None]:
    """Return one matrix per axis from shape `old` to `new`, edges growing by `ratios`; None where 1.

    Without `antialias` an axis that gets coarser is interpolated as one that gets finer.
    """
    return [
        None if r == 1 else axis_weights(positions(n, m, r), m, half_width=max(1.0, r) if antialias else 1.0)
        for m, n, r in zip(old, new, ratios, strict=True)
    ]


def resample_image(
    array: np.ndarray, shape: Triple, ratios: Sequence[float], *, antialias: bool = True
) -> np.ndarray:
    """Resample `[C,H,W,D]` to `shape` voxels of `ratios` old edges; returns float32 `[C,*shape]`."""
    old = (array.shape[1], array.shape[2], array.shape[3])
    matrices = resampling_weights(old, shape, ratios, antialias=antialias)
    channels = [apply_weights(matrices, channel) for channel in array]
    return channels[0][None] if len(channels) == 1 else np.stack(channels)


def resample_label_map(labels: np.ndarray, shape: Triple, ratios: Sequence[float]) -> np.ndarray:
    """Resample `[H,W,D]` label ids: each id's mask with the image's kernel, then the id with the largest
    share.

    The result `[*shape]` holds only ids of the input. A tie goes to the smaller id.
    """
    if all(ratio == 1 for ratio in ratios):
        return labels.copy()
    matrices = resampling_weights((labels.shape[0], labels.shape[1], labels.shape[2]), shape, ratios)
    best_share = np.zeros(shape, np.float32)
    best_id = np.zeros(shape, labels.dtype)
    for label_id in np.unique(labels):
        mask = labels == label_id
        source, target, parts = _support(mask, matrices)
        share = apply_weights(parts, mask[source])
        wins = share > best_share[target]
        best_share[target][wins] = share[wins]
        best_id[target][wins] = label_id
    return best_id


Box = tuple[slice, slice, slice]


def _support(
    mask: np.ndarray, matrices: Sequence[sparse.csr_array | None]
) -> tuple[Box, Box, list[sparse.csr_array | None]]:
    """Return the mask's box, the box it can reach on the new grid, and the matrices between the two.

    With a hundred small structures in a large volume this is what keeps the label map affordable.
    """
    source, target, parts = [], [], []
    for axis, matrix in enumerate(matrices):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        old = slice(int(hits[0]), int(hits[-1]) + 1)
        if matrix is None:
            new, part = old, None
        else:
            columns = matrix[:, old]
            rows = np.flatnonzero(np.diff(columns.indptr))
            new = slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0)
            part = columns[new]
        source.append(old)
        target.append(new)
        parts.append(part)
    return (source[0], source[1], source[2]), (target[0], target[1], target[2]), parts
