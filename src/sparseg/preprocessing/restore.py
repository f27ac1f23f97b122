"""Back from the model grid to the original one.

`restore_logits` is the plain reference: it holds all classes at full size. `windows/finish.py` does the same
slab by slab from the numbers of the record.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from sparseg.errors import NumericsError, ShapeError
from sparseg.preprocessing.orientation import undo_reorient
from sparseg.preprocessing.record import PreprocessRecord
from sparseg.preprocessing.resample import apply_weights, axis_weights

ABSENT_LOGIT = -20.0  # probability 2e-9


def background_fill(num_classes: int, *, regions: bool = False) -> list[float]:
    """Return logits that say "nothing here", for `restore_logits`.

    Args:
        num_classes: K.
        regions: True for overlapping regions under a sigmoid, where no channel is the background and all must
            be absent; False for a softmax over classes, where channel 0 is the background and must win.
    """
    absent = [ABSENT_LOGIT] * num_classes
    return absent if regions else [0.0, *absent[1:]]


def restore_logits(
    logits: np.ndarray, record: PreprocessRecord, *, fill: float | Sequence[float]
) -> np.ndarray:
    """Interpolate logits linearly on the original grid.

    Args:
        logits: `[K,H,W,D]` on the model grid; a CPU tensor will do.
        record: From `prepare`.
        fill: Logit of each class (or one for all) outside the foreground crop; see `background_fill`.

    Returns:
        `[K,H0,W0,D0]` float32; the very same values where no axis was resampled.

    Raises:
        ShapeError: not on the model grid, or `fill` of another length than K.
        NumericsError: a logit is not finite.
    """
    array = np.asarray(logits)
    if array.ndim != 4 or array.shape[1:] != tuple(record.model_shape):
        raise ShapeError(
            f"logits must be [K,{_text(record.model_shape)}]",
            received=array.shape,
            remedy="pass logits on the model grid of this record",
        )
    if not np.isfinite(array).all():
        raise NumericsError(
            "logits must be finite",
            received=f"{int((~np.isfinite(array)).sum())} bad values",
            remedy="check the weights",
        )
    fills = (
        np.broadcast_to(np.asarray(fill, np.float32), (len(array),)) if np.ndim(fill) == 0 else np.array(fill)
    )
    if fills.shape != (len(array),):
        raise ShapeError(
            f"fill must have one value per class ({len(array)})",
            received=fills.shape,
            remedy="use background_fill",
        )
    weights = [_linear(record, axis) for axis in range(3)]
    full = np.empty((len(array), *record.reoriented_shape), np.float32)
    full[:] = fills[:, None, None, None]
    for channel, target in zip(array, full, strict=True):
        target[crop_box(record)] = apply_weights(weights, channel)
    return np.ascontiguousarray(undo_reorient(full, record.permutation, record.flips))


def restore_label_map(labels: np.ndarray, record: PreprocessRecord) -> np.ndarray:
    """Take the nearest model voxel's id for every original voxel; outside the crop is 0.

    Args:
        labels: `[H,W,D]` ids on the model grid.
        record: From `prepare`.

    Returns:
        `[H0,W0,D0]` of the same type.

    Raises:
        ShapeError: not on the model grid.
    """
    array = np.asarray(labels)
    if array.shape != tuple(record.model_shape):
        raise ShapeError(
            f"labels must be [{_text(record.model_shape)}]",
            received=array.shape,
            remedy="pass labels on the model grid of this record",
        )
    nearest = [_nearest(record, axis) for axis in range(3)]
    full = np.zeros(record.reoriented_shape, array.dtype)
    full[crop_box(record)] = array[np.ix_(*nearest)]
    return np.ascontiguousarray(undo_reorient(full[None], record.permutation, record.flips)[0])


def model_positions(record: PreprocessRecord, axis: int) -> np.ndarray:
    """Model index (fractional) of every voxel of the crop along one RAS axis."""
    scale, offset = record.axis_maps[axis]
    return scale * np.arange(record.crop_start[axis], record.crop_stop[axis]) + offset


def _nearest(record: PreprocessRecord, axis: int) -> np.ndarray:
    # Grids share their centre, so exact ties occur; the 1e-6 sends all of them upwards in spite of rounding.
    indices = np.floor(model_positions(record, axis) + 0.5 + 1e-6).astype(np.int64)
    return np.clip(indices, 0, record.model_shape[axis] - 1)


def _linear(record: PreprocessRecord, axis: int) -> sparse.csr_array | None:
    if record.axis_maps[axis][0] == 1:
        return None
    return axis_weights(model_positions(record, axis), record.model_shape[axis])


def crop_box(record: PreprocessRecord) -> tuple[slice, ...]:
    """Where the crop lies in the reoriented grid."""
    return tuple(slice(a, b) for a, b in zip(record.crop_start, record.crop_stop, strict=True))


def _text(shape: Sequence[int]) -> str:
    return ",".join(str(n) for n in shape)
