"""From stored numbers to what the rest of the package works with: finite float32 images, exact int32 ids."""

from __future__ import annotations

import logging

import numpy as np

from sparseg.errors import LabelError, VolumeError

_LOG = logging.getLogger("sparseg")
_MAX_LABEL = 2**31 - 1


def image_values(
    array: np.ndarray, *, nonfinite: float | None, where: str, code: str, may_overflow: bool = True
) -> np.ndarray:
    """Return an image `[C, H, W, D]` as float32.

    Args:
        array: Numbers of any real type.
        nonfinite: Value that replaces NaN and infinities (counted in the log); None refuses them.
        where: File name for messages.
        code: Code of the error.
        may_overflow: False where every number is known to be finite in float32.

    Raises:
        VolumeError: a voxel is not finite in float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        array = array.astype(np.float32)
        # One pass without a mask: a float64 sum of float32 values is finite exactly when all of them are.
        if not may_overflow or np.isfinite(array.sum(dtype=np.float64)):
            return array
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if nonfinite is None or not np.isfinite(np.float32(nonfinite)):
        raise VolumeError(
            "every voxel must be finite in float32",
            received=f"{count} of {array.size} voxels NaN, infinite or beyond 3.4e38",
            remedy="repair the image, or fill such voxels with --nonfinite 0 (argument nonfinite)",
            where=where,
            code=code,
        )
    _LOG.warning("%s: %d voxels were not finite and are now %g", where, count, nonfinite)
    array[bad] = nonfinite
    return array


def label_values(values: np.ndarray, *, where: str) -> np.ndarray:
    """Return label ids `[1, H, W, D]` as int32, exact.

    Raises:
        VolumeError: several channels.
        LabelError: ids that are negative, fractional, too large or not finite, with their counts.
    """
    if values.shape[0] != 1:
        raise VolumeError(
            "a label map must have three axes",
            received=f"{values.shape[0]} channels",
            remedy="merge the channels into one label map",
            where=where,
            code="label-channels",
        )
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values.astype(np.int32)
    with np.errstate(invalid="ignore"):
        # Beside float32 values 2^31 - 1 would itself be rounded, to 2^31.
        bad = (values < 0) | (values >= _MAX_LABEL + 1.0)
        if values.dtype.kind == "f":
            bad |= values != np.rint(values)
    if bad.any():
        raise LabelError(
            f"label ids must be whole numbers from 0 to {_MAX_LABEL}",
            received=_id_counts(values[bad]),
            remedy="repair the label map",
            where=where,
            code="label-ids",
        )
    return values.astype(np.int32)


def _id_counts(values: np.ndarray) -> str:
    ids, counts = np.unique(values, return_counts=True)
    shown = ", ".join(f"{value:g} ({count} voxels)" for value, count in zip(ids[:5], counts[:5], strict=True))
    return shown if len(ids) <= 5 else f"{shown} and {len(ids) - 5} more"
