"""From a volume on its own grid to the model's input, and a record of how to go back."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from sparseg.errors import GeometryError, LabelError, VolumeError
from sparseg.preprocessing.config import CT_FOREGROUND_HU, CTIntensity, PreprocessConfig
from sparseg.preprocessing.crop import foreground_box
from sparseg.preprocessing.intensity import map_intensity
from sparseg.preprocessing.orientation import ras_axes, reorient, reorient_affine
from sparseg.preprocessing.record import PreprocessRecord
from sparseg.preprocessing.resample import num_voxels, resample_image, resample_label_map
from sparseg.shapes import Triple
from sparseg.volumes.geometry import require_same_grid
from sparseg.volumes.volume import Volume

SAME_SPACING = 1e-3  # relative; below it an axis keeps its voxels, so that values stay exact
MAX_MODEL_VOXELS = 2**32


class Prepared(NamedTuple):
    """Result of `prepare`: image `[C,H,W,D]` float32, labels `[1,H,W,D]` or None, and the record."""

    image: Volume
    labels: Volume | None
    record: PreprocessRecord


def prepare(
    image: Volume, config: PreprocessConfig, *, labels: Volume | None = None, antialias: bool = True
) -> Prepared:
    """Reorient to RAS, crop to the foreground, resample, map the intensity.

    Args:
        image: `[C,H0,W0,D0]` in its own units (HU for CT).
        config: The model's preprocessing.
        labels: `[1,H0,W0,D0]` integer ids on the image's grid. Ids never change and none is invented.
        antialias: Average what a coarser voxel covers; models are trained so. False interpolates between two
            voxels whatever the spacing, to compare with pipelines that do.

    Raises:
        VolumeError: the image is empty or holds a value that is not finite.
        GeometryError: labels on another grid; or the spacing asks for an absurd number of voxels.
        LabelError: labels that are not one channel of integers.
    """
    require_finite(image)
    if labels is not None:
        require_label_map(labels)
        require_same_grid(image, labels, what="image and labels")
    record = plan(image, config)
    ratios = _ratios(record)
    crop = _to_crop(image.array, record)
    resampled = resample_image(crop, record.model_shape, ratios, antialias=antialias)
    array = map_intensity(resampled, config.intensity, in_place=True)
    prepared_labels = None
    if labels is not None:
        resampled = resample_label_map(_to_crop(labels.array, record)[0], record.model_shape, ratios)
        prepared_labels = Volume(resampled[None], record.model_affine, labels.source)
    return Prepared(Volume(array, record.model_affine, image.source), prepared_labels, record)


def plan(image: Volume, config: PreprocessConfig) -> PreprocessRecord:
    """Decide axis order, crop and model grid of `image` without touching its voxels.

    Raises:
        GeometryError: the spacing asks for an absurd number of voxels.
    """
    permutation, flips = ras_axes(image.affine)
    affine = reorient_affine(image.affine, image.shape, permutation, flips)
    array = reorient(image.array, permutation, flips)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    start: Triple = (0, 0, 0)
    stop: Triple = (array.shape[1], array.shape[2], array.shape[3])
    if config.foreground_crop:
        start, stop = foreground_box(
            array, threshold=_threshold(config), spacing=spacing.tolist(), margin_mm=config.margin_mm
        )
    target = spacing if config.spacing is None else np.array(config.spacing)
    ratios = np.where(np.abs(target / spacing - 1) <= SAME_SPACING, 1.0, target / spacing)
    shape, model_affine = _model_grid(affine, start, stop, ratios)
    if prod(shape) > MAX_MODEL_VOXELS:
        raise GeometryError(
            f"the model grid must have at most {MAX_MODEL_VOXELS} voxels",
            received=f"{shape} at {config.spacing} mm",
            remedy="choose a larger spacing, or check the image's spacing",
            where=image.source,
        )
    return PreprocessRecord(image.shape, image.affine, permutation, flips, start, stop, shape, model_affine)


def require_finite(image: Volume) -> None:
    """Refuse an image without voxels or with NaN or infinity.

    Raises:
        VolumeError: says how many voxels are not finite.
    """
    if image.array.size == 0:
        raise VolumeError(
            "an image must have voxels",
            received=image.array.shape,
            where=image.source,
            remedy="check the file",
        )
    if np.issubdtype(image.array.dtype, np.integer):
        return
    # Everything after this is float32, so a float64 beyond its range is as bad as infinity.
    largest = np.finfo(np.float32).max
    # NaN is neither; two reductions need no array of the image's size, as counting does.
    if not (image.array.min() >= -largest and image.array.max() <= largest):
        bad = int(np.count_nonzero(~(np.abs(image.array) <= largest)))
        raise VolumeError(
            "every voxel must be finite",
            received=f"{bad} of {image.array.size} voxels NaN or infinite",
            remedy="repair or re-export the image",
            where=image.source,
            code="not-finite",
        )


def require_label_map(labels: Volume) -> None:
    """Refuse labels that are not one channel of integer type.

    Raises:
        LabelError: several channels, or a floating-point type.
    """
    if labels.num_channels != 1 or not np.issubdtype(labels.array.dtype, np.integer):
        raise LabelError(
            "labels must be one channel of integer ids",
            received=f"{labels.num_channels} channels of {labels.array.dtype}",
            remedy="read them with read_labels",
            where=labels.source,
        )


def _threshold(config: PreprocessConfig) -> float | None:
    if config.foreground_threshold is None and isinstance(config.intensity, CTIntensity):
        return CT_FOREGROUND_HU
    return config.foreground_threshold


def _model_grid(
    affine: np.ndarray, start: Triple, stop: Triple, ratios: np.ndarray
) -> tuple[Triple, np.ndarray]:
    """Return shape and affine of the grid centred on the crop, with edges of `ratios` voxels."""
    old = np.subtract(stop, start)
    new = [num_voxels(int(n), float(r)) if r != 1 else int(n) for n, r in zip(old, ratios, strict=True)]
    first = np.add(start, (old - 1) / 2 - (np.array(new) - 1) / 2 * ratios)
    result = affine.copy()
    result[:3, :3] = affine[:3, :3] * ratios
    result[:3, 3] = affine[:3, :3] @ first + affine[:3, 3]
    return (new[0], new[1], new[2]), result


def _ratios(record: PreprocessRecord) -> list[float]:
    return [1 / scale for scale, _ in record.axis_maps]


def _to_crop(array: np.ndarray, record: PreprocessRecord) -> np.ndarray:
    box = tuple(slice(a, b) for a, b in zip(record.crop_start, record.crop_stop, strict=True))
    return reorient(array, record.permutation, record.flips)[(slice(None), *box)]
