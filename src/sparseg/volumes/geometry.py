"""Arithmetic on 4x4 affines (voxel index -> world mm, RAS+), all in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

import numpy as np

from sparseg.errors import GeometryError
from sparseg.volumes.volume import Volume

_LETTERS = ("LR", "PA", "IS")
_MAX_SPACING_RATIO = 1e-3
_MAX_COSINE = 1e-4
# One float32 step of a quaternion; the square root behind its scalar part magnifies it near 180 degrees.
_QUATERNION_STEP = 4e-7


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Return the voxel edge lengths `[3]` in mm, in array-axis order."""
    lengths: np.ndarray = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return lengths


def orthogonality_error(affine: np.ndarray) -> float:
    """Return the largest |cosine| between two voxel axes: 0 for a grid of boxes, > 0 for a sheared one."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    unit = matrix / np.linalg.norm(matrix, axis=0)
    cosines = unit.T @ unit
    return float(max(abs(cosines[0, 1]), abs(cosines[0, 2]), abs(cosines[1, 2])))


def is_orthogonal(affine: np.ndarray, tol: float = _MAX_COSINE) -> bool:
    """Tell whether the voxel axes are at right angles (a rotated, oblique grid is)."""
    return orthogonality_error(affine) <= tol


def voxel_to_world(affine: np.ndarray, ijk: np.ndarray | Sequence[float]) -> np.ndarray:
    """Return the world positions `[..., 3]` in mm of voxel indices `[..., 3]` (fractions allowed)."""
    affine = np.asarray(affine, dtype=np.float64)
    points: np.ndarray = np.asarray(ijk, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]
    return points


def grid_corners(shape: Sequence[int]) -> np.ndarray:
    """Return the 8 outer corners `[8, 3]` of a grid as voxel indices: every axis at -0.5 and n - 0.5."""
    return np.array(list(product(*((-0.5, n - 0.5) for n in shape))), dtype=np.float64)


def corner_distance_mm(affine_a: np.ndarray, affine_b: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance in mm between the 8 outer corners of one grid under two affines.

    An affine difference is linear over the grid, so no voxel lies further apart than its worst corner.
    """
    corners = grid_corners(shape)
    shift = voxel_to_world(affine_a, corners) - voxel_to_world(affine_b, corners)
    return float(np.linalg.norm(shift, axis=1).max())


def axis_codes(affine: np.ndarray) -> str:
    """Return the patient direction in which each array axis grows, such as "RAS" or "LPS"."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    unit = matrix / np.linalg.norm(matrix, axis=0)
    best = max(
        permutations(range(3)), key=lambda rows: sum(abs(unit[row, col]) for col, row in enumerate(rows))
    )
    return "".join(_LETTERS[row][int(unit[row, col] > 0)] for col, row in enumerate(best))


def affine_from_codes(codes: str, spacing: Sequence[float]) -> np.ndarray:
    """Return the axis-aligned affine of a grid whose axes grow along `codes`, its first voxel at 0 mm.

    Raises:
        GeometryError: `codes` does not name three different axes.
    """
    rows = [next((row for row in range(3) if letter in _LETTERS[row]), None) for letter in codes.upper()]
    if sorted(rows, key=str) != [0, 1, 2]:
        raise GeometryError(
            "an orientation must name each of R/L, A/P and S/I once",
            received=repr(codes),
            remedy="use for example RAS or LPS",
            code="orientation-codes",
        )
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for axis, (row, letter) in enumerate(zip(rows, codes.upper(), strict=True)):
        affine[row, axis] = spacing[axis] if letter in "RAS" else -spacing[axis]
    return affine


def rounding_tolerance_mm(affine: np.ndarray, shape: Sequence[int]) -> float:
    """Return how far a corner may move by storage rounding: 0.01 voxel plus float32 steps of its position."""
    reach = np.abs(voxel_to_world(affine, grid_corners(shape))).max()
    return float(0.01 * spacing_of(affine).min() + 1e-6 * reach)


def quaternion_tolerance_mm(affine: np.ndarray, shape: Sequence[int]) -> float:
    """Return how far a corner may move, beside other rounding, where a NIfTI qform stores the directions.

    Its quaternion has no shear, and its scalar part is what three float32 numbers leave of length 1. That
    part is near 0 where the directions are a turn by almost 180 degrees, as those of a tilted LPS grid are.
    """
    extent = float(np.linalg.norm(spacing_of(affine) * shape))
    left, _, right = np.linalg.svd(np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_of(affine))
    turn = left @ right
    turn[:, 2] *= np.linalg.det(turn)
    scalar = np.sqrt(max(0.0, 1 + np.trace(turn))) / 2
    error = _QUATERNION_STEP / max(scalar, np.sqrt(_QUATERNION_STEP))
    return float(error + min(orthogonality_error(affine), _MAX_COSINE)) * extent


def require_same_grid(
    a: Volume, b: Volume, *, tol_mm: float | None = None, what: str = "image and label"
) -> None:
    """Check that two volumes lie on the same voxel grid.

    Args:
        a: The reference.
        b: The volume that must match it.
        tol_mm: Largest distance in mm allowed at any corner; by default 0.01 voxel plus float32 rounding, and
            that of a NIfTI quaternion if the first voxel and the edges agree.
        what: What the two are, for the message.

    Raises:
        GeometryError: the shapes, spacings, orientations or positions differ.
    """
    where = f"{a.source or 'first'} / {b.source or 'second'}"
    remedy = "resample one onto the grid of the other, or correct the wrong header"
    if a.shape != b.shape:
        raise GeometryError(
            f"{what} must have the same shape",
            received=f"{a.shape} and {b.shape}",
            remedy=remedy,
            where=where,
            code="grid-shape",
        )
    tol_mm = _tolerance_mm(a, b) if tol_mm is None else tol_mm
    distance = corner_distance_mm(a.affine, b.affine, a.shape)
    codes = axis_codes(a.affine), axis_codes(b.affine)
    if codes[0] != codes[1] and distance > tol_mm:
        raise GeometryError(
            f"{what} must have the same orientation",
            received=f"{codes[0]} and {codes[1]}, corners {distance:.4g} mm apart",
            remedy=remedy,
            where=where,
            code="grid-orientation",
        )
    _require_same_spacing(a, b, what=what, where=where, remedy=remedy)
    if distance > tol_mm:
        raise GeometryError(
            f"{what} must lie at the same place (within {tol_mm:.3g} mm)",
            received=f"corners {distance:.4g} mm apart",
            remedy=remedy,
            where=where,
            code="grid-position",
        )


def join_channels(volumes: Sequence[Volume]) -> Volume:
    """Return one volume with the channels of all, in order.

    Raises:
        GeometryError: they lie on different grids.
    """
    for other in volumes[1:]:
        require_same_grid(volumes[0], other, what="the channels of a case")
    if len(volumes) == 1:
        return volumes[0]
    array = np.concatenate([volume.array for volume in volumes])
    return Volume(array, volumes[0].affine, volumes[0].source)


def _tolerance_mm(a: Volume, b: Volume) -> float:
    """The rounding of float32 numbers; of a quaternion too if `b` may be `a` turned about its first voxel."""
    tol_mm = rounding_tolerance_mm(a.affine, a.shape)
    moved = np.linalg.norm(a.affine[:3, 3] - b.affine[:3, 3])
    grown = np.abs(spacing_of(a.affine) - spacing_of(b.affine)) * a.shape
    if max(moved, *grown) > tol_mm:
        return tol_mm
    return tol_mm + max(quaternion_tolerance_mm(volume.affine, volume.shape) for volume in (a, b))


def _require_same_spacing(a: Volume, b: Volume, *, what: str, where: str, remedy: str) -> None:
    ratio = np.abs(spacing_of(b.affine) / spacing_of(a.affine) - 1).max()
    if ratio > _MAX_SPACING_RATIO:
        raise GeometryError(
            f"{what} must have the same spacing",
            received=f"{_round(a.spacing)} and {_round(b.spacing)} mm",
            remedy=remedy,
            where=where,
            code="grid-spacing",
        )


def _round(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
