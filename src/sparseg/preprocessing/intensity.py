"""Voxel values as the model expects them."""

from __future__ import annotations

import numpy as np

from sparseg.preprocessing.config import CTIntensity, MRIntensity


def map_intensity(
    array: np.ndarray, settings: CTIntensity | MRIntensity, *, in_place: bool = False
) -> np.ndarray:
    """Map `[C,H,W,D]` to model values, float32.

    Args:
        array: Values in their own units.
        settings: What to do.
        in_place: The array is float32 and may be overwritten, which saves one of its size with CT.
    """
    if isinstance(settings, CTIntensity):
        return _clip_and_scale(array, *settings.clip, out=array if in_place else None)
    return np.stack([_standardise(channel) for channel in array])


def _clip_and_scale(array: np.ndarray, low: float, high: float, out: np.ndarray | None) -> np.ndarray:
    result: np.ndarray = np.clip(array.astype(np.float32, copy=False), low, high, out=out)
    result -= np.float32(low)
    result *= np.float32(2 / (high - low))
    result -= 1
    return result


def _standardise(channel: np.ndarray) -> np.ndarray:
    """Subtract mean and divide by deviation over non-zero voxels; a constant channel becomes zero."""
    mask = channel != 0
    values = channel[mask].astype(np.float64)
    result = np.zeros(channel.shape, np.float32)
    if values.size:
        values -= values.mean()
        deviation = values.std()
        # Rounding leaves a constant channel a deviation near 1e-16 of its value; dividing by it would blow up
        # noise.
        if deviation > 1e-7 * np.abs(channel[mask]).max():
            values /= deviation
        result[mask] = values
    return result
