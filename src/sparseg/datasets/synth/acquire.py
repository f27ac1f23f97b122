"""What a scanner does to a subject: blur, thick slices, noise, whole numbers."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from sparseg.datasets.synth.config import SynthConfig
from sparseg.volumes.volume import Volume

# Nearest-neighbour borders of painted tissues are sharper than any scan's.
_MIN_SIGMA_VOX = 0.4
# Standard deviation of a Gaussian whose width at half height is 1.
_SIGMA_OF_WIDTH = 0.4247
_RANGES = {"ct": (-1024, 3071), "mr": (0, 4095)}


def acquire(
    image: np.ndarray,
    labels: np.ndarray,
    affine: np.ndarray,
    config: SynthConfig,
    rng: np.random.Generator,
) -> tuple[Volume, Volume]:
    """Return image and labels as a scanner would give them.

    Args:
        image: `[C,H,W,D]` float32.
        labels: `[H,W,D]` int32 ids.
        affine: 4x4, voxel -> RAS mm.
        config: Settings.
        rng: Source of randomness.

    Returns:
        Image `[C,H,W,D]` int16 and labels `[1,H,W,D]` int32 on one grid: the given one or, with
        `native_resolution`, one that is coarser along the slices.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    native = config.native_resolution
    axis, count = _slices(labels.shape, affine, config, rng)
    channels: list[np.ndarray] = []
    for channel in image:
        if channels and not native:
            axis, count = _slices(labels.shape, affine, config, rng)
        sigma = rng.uniform(0, config.blur_mm) / spacing
        if config.intensity == "classes":
            sigma = np.maximum(sigma, _MIN_SIGMA_VOX)
        blurred = ndimage.gaussian_filter(channel, sigma, mode="nearest")
        thick = _thicken(blurred, axis, count)
        deviation = np.float32(rng.uniform(0, config.noise))
        thick = thick + deviation * rng.standard_normal(thick.shape, dtype=np.float32)
        channels.append(thick if native else resample_axis(thick, axis, labels.shape[axis]))
    low, high = _RANGES[config.modality]
    stored = np.rint(np.clip(np.stack(channels), low, high)).astype(np.int16)
    if native:
        labels, affine = _coarse_labels(labels, axis, count), _coarse_affine(affine, axis, labels, count)
    return Volume(stored, affine, "synthetic"), Volume(labels[None], affine, "synthetic")


def resample_axis(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Resample one axis to `count` samples over the same extent, linear, constant beyond the outer centres.

    Args:
        array: `[H,W,D]`.
        axis: Axis to resample.
        count: New number of samples.
    """
    if count == array.shape[axis]:
        return array
    old = array.shape[axis]
    where = np.clip(_centres(count, old), 0, old - 1)
    lower = np.minimum(where.astype(np.int64), max(old - 2, 0))
    upper = np.minimum(lower + 1, old - 1)
    weight = (where - lower).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    first, second = np.take(array, lower, axis), np.take(array, upper, axis)
    result: np.ndarray = first + weight * (second - first)
    return result


def _slices(
    shape: tuple[int, ...], affine: np.ndarray, config: SynthConfig, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw the axis across the slices and their number."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along_body = int(np.abs(affine[2, :3] / spacing).argmax())
    random_axis = int(rng.integers(3))
    axis = along_body if config.modality == "ct" else random_axis
    thickness = max(float(rng.uniform(0, config.max_thickness_mm)), float(spacing[axis]))
    return axis, max(1, round(shape[axis] * float(spacing[axis]) / thickness))


def _thicken(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    if count == array.shape[axis]:
        return array
    sigma = _SIGMA_OF_WIDTH * array.shape[axis] / count
    return resample_axis(ndimage.gaussian_filter1d(array, sigma, axis, mode="nearest"), axis, count)


def _centres(new: int, old: int) -> np.ndarray:
    """Old indices of the centres of `new` samples over the extent of `old` ones."""
    return (np.arange(new) + 0.5) * (old / new) - 0.5


def _coarse_labels(labels: np.ndarray, axis: int, count: int) -> np.ndarray:
    # Half-way positions go up, whatever the parity of the index.
    nearest = np.floor(_centres(count, labels.shape[axis]) + 0.5).astype(np.int64)
    return np.take(labels, np.clip(nearest, 0, labels.shape[axis] - 1), axis)


def _coarse_affine(affine: np.ndarray, axis: int, labels: np.ndarray, count: int) -> np.ndarray:
    factor = labels.shape[axis] / count
    coarse = affine.copy()
    coarse[:3, 3] += affine[:3, axis] * (0.5 * factor - 0.5)
    coarse[:3, axis] *= factor
    return coarse
