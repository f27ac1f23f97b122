"""The safe repairs of one image or label map, on arrays: nothing is guessed, each says what it changed."""

from __future__ import annotations

import numpy as np

from sparseg.datasets.nonfinite import NONFINITE_MARK
from sparseg.errors import GeometryError, LabelError, VolumeError
from sparseg.preprocessing.orientation import reorient, reorient_affine
from sparseg.volumes.geometry import axis_codes, require_same_grid
from sparseg.volumes.volume import Volume

_MAX_ROUNDING = 1e-3
# Beyond this float32 cannot tell neighbouring whole numbers apart.
_MAX_FLOAT_ID = 2**24
_SLAB_VOXELS = 2**20
# Of a voxel: a centre exactly between two others must not fall to either side by rounding of the affine.
_TIE = 1e-6


def reorient_label(label: Volume, image: Volume) -> tuple[Volume, str]:
    """Reorder the axes of a label map to those of its image: voxels move in memory, not in the patient.

    Args:
        label: `[1,H,W,D]` ids on the image's grid up to axis order and direction.
        image: `[C,H0,W0,D0]`.

    Returns:
        The ids `[1,H0,W0,D0]` with the image's affine, and what was done.

    Raises:
        GeometryError: the grids differ by more than order and direction of axes.
    """
    matrix = (np.linalg.inv(label.affine) @ image.affine)[:3, :3]
    axes = [int(axis) for axis in np.abs(matrix).argmax(axis=0)]
    if sorted(axes) != [0, 1, 2]:
        raise GeometryError(
            "label and image must have the same axes up to order and direction",
            received=np.round(matrix, 3).tolist(),
            remedy="resample the label onto the grid of the image",
            where=label.source,
            code="grid-orientation",
        )
    signs = [matrix[axis, column] < 0 for column, axis in enumerate(axes)]
    order, flips = (axes[0], axes[1], axes[2]), (bool(signs[0]), bool(signs[1]), bool(signs[2]))
    affine = reorient_affine(label.affine, label.shape, order, flips)
    moved = Volume(np.ascontiguousarray(reorient(label.array, order, flips)), affine, label.source)
    require_same_grid(image, moved, what="image and reordered label")
    detail = (
        f"axes from {axis_codes(label.affine)} to {axis_codes(image.affine)}; "
        f"all {int(np.count_nonzero(label.array))} labelled voxels kept"
    )
    return Volume(moved.array, image.affine, label.source), detail


def resample_label(label: Volume, image: Volume) -> tuple[Volume, str]:
    """Give each voxel of the image the id of the label voxel in which its centre lies; outside is background.

    Args:
        label: `[1,H,W,D]` ids on any grid.
        image: `[C,H0,W0,D0]`.

    Returns:
        The ids `[1,H0,W0,D0]` with the image's affine, and what was done.

    Raises:
        LabelError: something is labelled but nothing of it lies in the image.
    """
    to_label = np.linalg.inv(label.affine) @ image.affine
    result = np.zeros(image.shape, label.array.dtype)
    thickness = max(1, _SLAB_VOXELS // (image.shape[1] * image.shape[2]))
    for start in range(0, image.shape[0], thickness):
        stop = min(image.shape[0], start + thickness)
        result[start:stop] = _nearest(label.array[0], to_label, range(start, stop), image.shape)
    before, after = (
        np.count_nonzero(ids) * float(abs(np.linalg.det(affine[:3, :3]))) / 1000
        for ids, affine in ((label.array, label.affine), (result, image.affine))
    )
    if before and not after:
        raise LabelError(
            "the labelled part must lie in the image",
            received=f"{before:.4g} ml labelled, none of it in the image",
            remedy="check that image and label belong together",
            where=label.source,
            code="label-outside",
        )
    detail = (
        f"from {_grid(label)} to {_grid(image)}, nearest voxel in mm; "
        f"labelled volume {before:.4g} ml before, {after:.4g} ml after"
    )
    return Volume(result[None], image.affine, label.source), detail


def _nearest(ids: np.ndarray, to_label: np.ndarray, rows: range, shape: tuple[int, ...]) -> np.ndarray:
    """Ids `[len(rows),W,D]` at the voxel centres of some rows of the image's grid."""
    axes = (np.arange(rows.start, rows.stop), np.arange(shape[1]), np.arange(shape[2]))
    i, j, k = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = np.ones((len(rows), *shape[1:]), bool)
    index = []
    for row, size in zip(to_label[:3], ids.shape, strict=True):
        nearest = np.floor(row[0] * i + row[1] * j + row[2] * k + row[3] + 0.5 + _TIE).astype(np.int64)
        inside &= (nearest >= 0) & (nearest < size)
        index.append(np.clip(nearest, 0, size - 1))
    return np.where(inside, ids[index[0], index[1], index[2]], 0)


def round_label(values: Volume) -> tuple[Volume, str]:
    """Round ids that are whole numbers but for storage error.

    Args:
        values: `[1,H,W,D]` float32, as read without interpreting them as ids.

    Returns:
        The ids, int32, and what was done.

    Raises:
        VolumeError: several channels.
        LabelError: values further than 0.001 from a whole number, negative ids, or ids float32 cannot hold.
    """
    if values.num_channels != 1:
        raise VolumeError(
            "a label map must have three axes",
            received=f"{values.num_channels} channels",
            remedy="merge the channels into one label map",
            where=values.source,
            code="label-channels",
        )
    rounded = np.rint(values.array)
    distance = np.abs(values.array - rounded)
    bad = (distance > _MAX_ROUNDING) | (rounded < 0) | (rounded > _MAX_FLOAT_ID)
    if bad.any():
        raise LabelError(
            f"ids to round must lie within {_MAX_ROUNDING} of whole numbers from 0 to {_MAX_FLOAT_ID}",
            received=f"{int(bad.sum())} voxels, the first {float(values.array[bad][0]):g}",
            remedy="repair the label map",
            where=values.source,
            code="label-ids",
        )
    detail = f"{int(np.count_nonzero(distance))} voxels moved by at most {float(distance.max()):.2g}"
    return Volume(rounded.astype(np.int32), values.affine, values.source), detail


def fill_nonfinite(image: Volume, labels: Volume | None) -> tuple[Volume, str]:
    """Give voxels marked as not finite the smallest finite value of their channel.

    Args:
        image: `[C,H,W,D]` float32 with `NONFINITE_MARK` where the file holds NaN, infinity or more than
            float32 can.
        labels: `[1,H,W,D]` ids on the same grid, or None.

    Returns:
        The filled image, and what was done.

    Raises:
        VolumeError: a channel without any finite voxel, or a voxel to fill that is labelled.
    """
    bad = image.array >= NONFINITE_MARK
    if bad.all(axis=(1, 2, 3)).any():
        raise VolumeError(
            "every channel must have finite voxels",
            received="a channel without any",
            remedy="export the image again",
            where=image.source,
            code="image-nonfinite",
        )
    labelled = 0 if labels is None else int(np.count_nonzero(bad & (labels.array > 0)))
    if labelled:
        raise VolumeError(
            "a voxel to fill must not be labelled",
            received=f"{labelled} of {int(bad.sum())} are",
            remedy="export the image again: what the label shows there is lost",
            where=image.source,
            code="image-nonfinite",
        )
    array, filled = image.array.copy(), []
    for number, (channel, holes) in enumerate(zip(array, bad, strict=True)):
        if holes.any():
            lowest = float(channel[~holes].min())
            channel[holes] = lowest
            filled.append(f"channel {number}: {int(holes.sum())} of {holes.size} voxels set to {lowest:g}")
    detail = "; ".join(filled) or "no voxel had to be filled"
    return Volume(array, image.affine, image.source), detail


def _grid(volume: Volume) -> str:
    shape = "x".join(str(n) for n in volume.shape)
    return f"{shape} voxels of {' x '.join(f'{edge:.4g}' for edge in volume.spacing)} mm"
