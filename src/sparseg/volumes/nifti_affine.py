"""Where a NIfTI grid lies: sform, qform, pixdim and units checked against each other, result in mm."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from sparseg.errors import GeometryError
from sparseg.volumes.geometry import (
    affine_from_codes,
    corner_distance_mm,
    is_orthogonal,
    orthogonality_error,
    quaternion_tolerance_mm,
    rounding_tolerance_mm,
    spacing_of,
)
from sparseg.volumes.nifti_header import NiftiHeader

AffineChoice = Literal["refuse", "sform", "qform"]

_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_PIXDIM_RATIO = 1e-3
_MIN_SPACING_MM, _MAX_SPACING_MM = 1e-4, 1e3
_MAX_POSITION_MM = 1e6
# Stored numbers outside these bounds are wrong in every unit, and their squares could overflow float64.
_TINY, _HUGE = 1e-9, 1e12


def world_affine(
    header: NiftiHeader, *, choice: AffineChoice, assume_orientation: str | None, where: str
) -> np.ndarray:
    """Return the affine `[4, 4]` (voxel -> RAS mm, float64) of a header.

    Args:
        header: Parsed header.
        choice: Which form to believe; "refuse" wants them not to contradict each other.
        assume_orientation: Axis codes for a file that states no orientation.
        where: File name for messages.

    Raises:
        GeometryError: no orientation, contradicting forms, bad or sheared geometry.
    """
    if header.unit not in _MM_PER_UNIT:
        raise _refuse(
            "the spatial unit must be metre, mm or micron", header.unit, "correct xyzt_units", where, "unit"
        )
    affine = _stored_affine(header, choice, assume_orientation, where)
    affine[:3] *= _MM_PER_UNIT[header.unit]
    check_grid(affine, where=where, prefix="nifti")
    return affine


def _stored_affine(
    header: NiftiHeader, choice: AffineChoice, assume_orientation: str | None, where: str
) -> np.ndarray:
    has_q, has_s = header.qform_code > 0, header.sform_code > 0
    if choice != "refuse" and not (has_s if choice == "sform" else has_q):
        raise _refuse(
            f"the chosen {choice} must be set",
            f"{choice}_code 0",
            "choose the other form, or do not choose",
            where,
            f"no-{choice}",
        )
    if choice == "qform" or (has_q and not has_s):
        return _qform(header, where)
    if choice == "sform":
        return _sform(header, where)
    if has_s:
        return _agreeing_sform(header, where)
    if assume_orientation is None:
        raise _refuse(
            "the header must state an orientation",
            "qform_code 0 and sform_code 0",
            "give --assume-orientation LPS (argument assume_orientation) if you know it",
            where,
            "no-orientation",
        )
    return affine_from_codes(assume_orientation, _pixdim(header, where).tolist())


def _agreeing_sform(header: NiftiHeader, where: str) -> np.ndarray:
    sform, pixdim = _sform(header, where), _pixdim(header, where)
    if header.qform_code > 0:
        qform = _qform(header, where)
        shape = header.shape[:3]
        distance = corner_distance_mm(sform, qform, shape)
        if not distance <= rounding_tolerance_mm(sform, shape) + quaternion_tolerance_mm(sform, shape):
            raise _refuse(
                "qform and sform must describe the same place",
                f"corners {distance:.4g} units apart",
                "choose with --affine sform or --affine qform (argument affine_choice)",
                where,
                "qs-disagree",
            )
    spacing = spacing_of(sform)
    if np.abs(spacing / pixdim - 1).max() > _PIXDIM_RATIO:
        raise _refuse(
            "pixdim and sform must give the same spacing",
            f"{_text(pixdim)} and {_text(spacing)}",
            "choose --affine sform (argument affine_choice) if the sform is right",
            where,
            "pixdim-disagree",
        )
    return sform


def _sform(header: NiftiHeader, where: str) -> np.ndarray:
    affine = np.vstack([header.srow, [0.0, 0.0, 0.0, 1.0]])
    if not (np.abs(affine) < _HUGE).all() or (spacing_of(affine) < _TINY).any():
        raise _refuse(
            "the sform must hold numbers of sensible size",
            affine[:3].tolist(),
            "correct the header",
            where,
            "bad-sform",
        )
    return affine


def _pixdim(header: NiftiHeader, where: str) -> np.ndarray:
    pixdim = np.array(header.pixdim[1:4], dtype=np.float64)
    if not ((pixdim > _TINY) & (pixdim < _HUGE)).all():
        raise _refuse(
            "pixdim must hold positive numbers of sensible size",
            pixdim.tolist(),
            "correct the header",
            where,
            "bad-pixdim",
        )
    return pixdim


def _qform(header: NiftiHeader, where: str) -> np.ndarray:
    """Return the affine of the quaternion, after nifti1.h (method 2)."""
    numbers = np.array([*header.quaternion, header.pixdim[0]], dtype=np.float64)
    b, c, d = (float(v) for v in numbers[:3])
    if not (np.abs(numbers) < _HUGE).all() or b * b + c * c + d * d > 1 + 1e-5:
        raise _refuse(
            "the qform must be finite and its quaternion no longer than 1",
            numbers[:6].tolist(),
            "correct the header",
            where,
            "bad-qform",
        )
    qfac = float(header.pixdim[0])
    if qfac < 0 and qfac != -1:
        # Some readers go by the sign and mirror the image, others take whatever is not -1 for 1.
        raise _refuse(
            "pixdim[0], the direction of the qform's third axis, must be 1 or -1",
            qfac,
            "correct it in the header, or choose --affine sform (argument affine_choice) if there is one",
            where,
            "bad-qform",
        )
    a = math.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    norm = math.sqrt(a * a + b * b + c * c + d * d)
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    scale = _pixdim(header, where) * [1, 1, -1 if qfac < 0 else 1]
    affine = np.eye(4)
    affine[:3, :3] = rotation * scale
    affine[:3, 3] = numbers[3:6]
    return affine


def check_grid(affine: np.ndarray, *, where: str, prefix: str) -> None:
    """Check that an affine (voxel -> RAS mm) is one that a scanner could have made.

    Args:
        affine: `[4, 4]`, finite.
        where: File name for messages.
        prefix: First part of the error codes, such as "nifti".

    Raises:
        GeometryError: spacing or position beyond all reason, or axes that are not at right angles.
    """
    spacing = spacing_of(affine)
    if spacing.min() < _MIN_SPACING_MM or spacing.max() > _MAX_SPACING_MM:
        raise _refuse(
            f"spacing must be from {_MIN_SPACING_MM} to {_MAX_SPACING_MM} mm",
            _text(spacing),
            "correct the spacing or the unit in the header",
            where,
            "bad-spacing",
            prefix,
        )
    if np.abs(affine[:3, 3]).max() > _MAX_POSITION_MM:
        raise _refuse(
            f"the first voxel must lie within {_MAX_POSITION_MM:g} mm of the origin",
            affine[:3, 3].tolist(),
            "correct the origin in the header",
            where,
            "bad-origin",
            prefix,
        )
    if not is_orthogonal(affine):
        raise _refuse(
            "voxel axes must be at right angles",
            f"a shear with cosine {orthogonality_error(affine):.4g}",
            "resample the image to an orthogonal grid",
            where,
            "shear",
            prefix,
        )


def _text(values: np.ndarray) -> str:
    return "x".join(f"{value:.6g}" for value in values)


def _refuse(
    rule: str, received: object, remedy: str, where: str, code: str, prefix: str = "nifti"
) -> GeometryError:
    return GeometryError(rule, received=received, remedy=remedy, where=where, code=f"{prefix}-{code}")
