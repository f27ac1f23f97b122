"""Which faults have a repair that cannot change what the data mean, and the name of that repair."""

from __future__ import annotations

import numpy as np

from sparseg.preprocessing.orientation import ras_axes, reorient_affine
from sparseg.shapes import Triple
from sparseg.volumes.geometry import corner_distance_mm, rounding_tolerance_mm, voxel_to_world
from sparseg.volumes.volume import Volume

REORIENT_LABEL = "reorient-label"
RESAMPLE_LABEL = "resample-label"
ROUND_LABEL = "round-label"
FILL_NONFINITE = "fill-nonfinite"
DROP_DUPLICATE = "drop-duplicate"

_MIN_COVERED = 0.9
_MAX_ROUNDING = 1e-3
_MAX_FLOAT_ID = 2**24
_SAMPLES = 20


def grid_repair(image: Volume, labels: Volume) -> str:
    """Name the repair that brings labels onto the image's grid without moving them in the patient.

    Equal shapes on different grids have none: one of the two headers is then wrong, and nothing tells which.

    Returns:
        "reorient-label" where the grids differ by order and direction of axes only, "resample-label" where
        the shapes differ and one box covers at least 90 % of the other, else "".
    """
    if _same_up_to_axes(image, labels):
        return REORIENT_LABEL
    if _ras_shape(image) == _ras_shape(labels):
        return ""
    covered = max(covered_share(image, labels), covered_share(labels, image))
    return RESAMPLE_LABEL if covered >= _MIN_COVERED else ""


def covered_share(inner: Volume, outer: Volume) -> float:
    """Share of the box of `inner` that lies in the box of `outer`, from 20 points along each axis."""
    axes = [(np.arange(_SAMPLES) + 0.5) * size / _SAMPLES - 0.5 for size in inner.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    voxels = voxel_to_world(np.linalg.inv(outer.affine), voxel_to_world(inner.affine, points))
    inside = (voxels >= -0.5) & (voxels <= np.array(outer.shape) - 0.5)
    return float(inside.all(axis=1).mean())


def rounding_repair(values: np.ndarray) -> str:
    """Name the repair of ids `[1,H,W,D]`: "round-label" if all are within 0.001 of whole numbers, else ""."""
    rounded = np.rint(values)
    fits = (np.abs(values - rounded) <= _MAX_ROUNDING) & (rounded >= 0) & (rounded <= _MAX_FLOAT_ID)
    return ROUND_LABEL if values.shape[0] == 1 and bool(fits.all()) else ""


def filling_repair(bad: np.ndarray, labels: Volume | None) -> str:
    """Name the repair of voxels that are not finite.

    Args:
        bad: `[C,H,W,D]`, True where the image is not finite.
        labels: `[1,H,W,D]` on the image's grid, None if the case has none.

    Returns:
        "fill-nonfinite" if no such voxel is labelled and every channel has others, else "".
    """
    if bad.all(axis=(1, 2, 3)).any():
        return ""
    labelled = labels is not None and bool((bad & (labels.array > 0)).any())
    return "" if labelled else FILL_NONFINITE


def _same_up_to_axes(a: Volume, b: Volume) -> bool:
    shape = _ras_shape(a)
    if shape != _ras_shape(b):
        return False
    first, second = (reorient_affine(v.affine, v.shape, *ras_axes(v.affine)) for v in (a, b))
    return corner_distance_mm(first, second, shape) <= rounding_tolerance_mm(first, shape)


def _ras_shape(volume: Volume) -> Triple:
    permutation, _ = ras_axes(volume.affine)
    return (volume.shape[permutation[0]], volume.shape[permutation[1]], volume.shape[permutation[2]])
