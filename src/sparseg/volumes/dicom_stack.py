"""From slices to one regular grid: order by position, refuse gaps, duplicates, tilt and mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sparseg.errors import GeometryError
from sparseg.volumes.dicom_header import SliceHeader

_MAX_OFF_GRID_MM = 0.02
_MAX_OFF_GRID_SHARE = 0.02
_MAX_IN_PLANE_MM = 0.1
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def stack_slices(slices: Sequence[SliceHeader], *, where: str) -> tuple[list[SliceHeader], np.ndarray]:
    """Return the slices in order of position along their normal, and the grid's affine.

    Args:
        slices: Slices of one series, in any order; InstanceNumber plays no part.
        where: Folder for messages.

    Returns:
        The ordered slices, and the 4x4 affine (column, row, slice index) -> RAS mm.

    Raises:
        GeometryError: mixed sizes, spacings or orientations; missing, duplicate or unevenly spaced slices; a
            gantry tilt.
    """
    _require_uniform(slices, where)
    first_cosines, second_cosines = slices[0].cosines
    normal = np.cross(first_cosines, second_cosines)
    ordered = sorted(slices, key=lambda item: float(item.position @ normal))
    positions = np.array([item.position for item in ordered])
    depths = positions @ normal
    if len(ordered) == 1:
        gap = _single_slice_gap(ordered[0], where)
    else:
        gap = _even_gap(depths, where)
        _require_straight(positions, normal, where)
    affine = np.eye(4)
    affine[:3, 0] = first_cosines * ordered[0].spacing[1]
    affine[:3, 1] = second_cosines * ordered[0].spacing[0]
    affine[:3, 2] = normal * gap
    affine[:3, 3] = positions[0]
    return ordered, _LPS_TO_RAS @ affine


def _require_uniform(slices: Sequence[SliceHeader], where: str) -> None:
    first = slices[0]
    for item in slices:
        same_spacing = np.allclose(item.spacing, first.spacing, rtol=1e-4, atol=0)
        same_direction = np.allclose(item.cosines, first.cosines, atol=1e-4)
        same_frame = item.frame_of_reference == first.frame_of_reference
        if item.size == first.size and same_spacing and same_direction and same_frame:
            continue
        raise GeometryError(
            "the slices of one series must share size, spacing, orientation and frame of reference",
            received=f"{_describe(first)} and {_describe(item)}",
            remedy="separate the acquisitions into folders of their own",
            where=where,
            code="dicom-mixed",
        )


def _describe(item: SliceHeader) -> str:
    cosines = np.round(item.cosines.ravel(), 4).tolist()
    (rows, columns), (between_rows, between_columns) = item.size, item.spacing
    return f"{item.path.name} ({rows}x{columns}, {between_rows:g}x{between_columns:g} mm, {cosines})"


def _single_slice_gap(item: SliceHeader, where: str) -> float:
    if not item.thickness or not np.isfinite(item.thickness):
        raise GeometryError(
            "a single slice must state its thickness",
            received=item.thickness,
            remedy="add SliceThickness, or give the whole series",
            where=where,
            code="dicom-no-thickness",
        )
    return item.thickness


def _even_gap(depths: np.ndarray, where: str) -> float:
    """Return the distance of neighbouring slices in mm, the same everywhere."""
    gaps = np.diff(depths)
    usual = float(np.median(gaps))
    tolerance = max(_MAX_OFF_GRID_MM, _MAX_OFF_GRID_SHARE * usual)
    remedy = "complete the series, or keep one acquisition per folder"
    if gaps.min() < min(0.01, 0.1 * usual) or usual <= 0:
        at = _list(depths[1:][gaps <= min(0.01, 0.1 * max(usual, 0.1))])
        raise GeometryError(
            "no two slices may lie at the same place",
            received=f"duplicates at {at} mm",
            remedy=remedy,
            where=where,
            code="dicom-duplicate",
        )
    even = np.linspace(depths[0], depths[-1], len(depths))
    if np.abs(depths - even).max() <= tolerance:
        return float((depths[-1] - depths[0]) / (len(depths) - 1))
    holes = [(a, b) for a, b in pairwise(depths.tolist()) if b - a > 1.5 * usual]
    if holes:
        between = ", ".join(f"{a:g} and {b:g}" for a, b in holes[:5])
        raise GeometryError(
            "no slice may be missing",
            received=f"gaps between {between} mm (usual step {usual:g} mm)",
            remedy=remedy,
            where=where,
            code="dicom-missing",
        )
    near = _list(depths[1:][abs(gaps - usual) > tolerance])
    raise GeometryError(
        "slices must be evenly spaced",
        received=f"steps from {gaps.min():g} to {gaps.max():g} mm, near {near or 'every slice'}",
        remedy="resample the series to even spacing with a tool that knows its positions",
        where=where,
        code="dicom-nonuniform",
    )


def _require_straight(positions: np.ndarray, normal: np.ndarray, where: str) -> None:
    """Refuse a stack whose slices shift sideways: a box-shaped grid would put its end in the wrong place."""
    offsets = positions - positions[0]
    along = offsets @ normal
    sideways = np.linalg.norm(offsets - along[:, None] * normal, axis=1)
    worst = int(sideways.argmax())
    if sideways[worst] > _MAX_IN_PLANE_MM:
        angle = np.degrees(np.arctan2(sideways[worst], along[worst]))
        raise GeometryError(
            "slices must be stacked at right angles (no gantry tilt)",
            received=f"a shift of {sideways[worst]:.4g} mm over {along[worst]:.4g} mm, {angle:.3g} degrees",
            remedy="correct the tilt while converting to NIfTI",
            where=where,
            code="dicom-tilt",
        )


def _list(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"
