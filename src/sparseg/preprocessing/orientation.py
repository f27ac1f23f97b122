"""Nearest axis order and direction to RAS: permutation and flips only, never interpolation."""

from __future__ import annotations

import numpy as np

from sparseg.shapes import Triple

Flips = tuple[bool, bool, bool]


def ras_axes(affine: np.ndarray) -> tuple[Triple, Flips]:
    """Find the permutation and flips that bring array axes nearest to right, anterior, superior.

    Args:
        affine: float64 4x4, voxel -> world mm.

    Returns:
        `permutation` (reoriented axis r is original axis `permutation[r]`) and `flips` (whether reoriented
        axis r runs against the original one). An oblique affine stays oblique.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    left, _, right = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0))
    # The rotation nearest to the axes; the clearest axis chooses its direction first, as nibabel has it.
    turn = left @ right
    order, free = [0, 0, 0], np.ones(3, dtype=bool)
    for axis in np.argsort(-np.abs(turn).max(axis=0), kind="stable"):
        direction = int(np.where(free, np.abs(turn[:, axis]), -1.0).argmax())
        order[direction], free[direction] = int(axis), False
    flips = [bool(turn[direction, axis] < 0) for direction, axis in enumerate(order)]
    return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])


def reorient(array: np.ndarray, permutation: Triple, flips: Flips) -> np.ndarray:
    """Apply `ras_axes` to `[C,H0,W0,D0]`; returns a view `[C,H,W,D]`."""
    moved = array.transpose(0, *(1 + axis for axis in permutation))
    return moved[_backwards(flips)]


def undo_reorient(array: np.ndarray, permutation: Triple, flips: Flips) -> np.ndarray:
    """Invert `reorient`: `[C,H,W,D]` -> view `[C,H0,W0,D0]`."""
    return array[_backwards(flips)].transpose(0, *(1 + int(axis) for axis in np.argsort(permutation)))


def reorient_affine(affine: np.ndarray, shape: Triple, permutation: Triple, flips: Flips) -> np.ndarray:
    """Return the affine of the reoriented array; `shape` is the original (H0, W0, D0)."""
    result = affine.copy()
    result[:3, :3] = affine[:3, list(permutation)]
    for axis in range(3):
        if flips[axis]:
            result[:3, 3] += result[:3, axis] * (shape[permutation[axis]] - 1)
            result[:3, axis] = 0.0 - result[:3, axis]  # 0.0 - x never leaves a negative zero in the header
    return result


def _backwards(flips: Flips) -> tuple[slice, ...]:
    return (slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))
