"""Random crops of prepared images, lightly changed. A crop depends only on (seed, crop number)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparseg.shapes import Triple
from sparseg.training.pretrain.config import CropConfig
from sparseg.training.sampling import cut

MAX_TRIES = 4
# Prepared images are stored in float16: air is within this of its value.
_SAME = 1e-3


class PreparedImage(Protocol):
    """A prepared image, in memory or in the cache: `[C,H,W,D]`, sliced as a numpy array."""

    @property
    def image(self) -> Any:
        """See above."""


class ImageCrops(Dataset[Tensor]):
    """Crop number -> image `[C, *roi]` float32.

    Args:
        cases: Prepared images, all with the same channels.
        roi: Size of a crop (H, W, D).
        config: Choice and changes.
        pad_value: Value of the image outside the volume.
        seed: Fixes every crop, together with its number.
    """

    def __init__(
        self, cases: Sequence[PreparedImage], roi: Triple, config: CropConfig, *, pad_value: float, seed: int
    ) -> None:
        self.cases = cases
        self.roi = roi
        self.config = config
        self.pad_value = pad_value
        self.seed = seed

    def __getitem__(self, number: int) -> Tensor:
        rng = np.random.default_rng((self.seed, number))
        crop = change(self.draw(rng), self.config, rng, pad_value=self.pad_value)
        return torch.from_numpy(crop)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Cut a crop `[C, *roi]` float32; one with little content is drawn again, up to three times."""
        for _ in range(MAX_TRIES):
            image = self.cases[int(rng.integers(len(self.cases)))].image
            crop = cut(image, random_centre(image.shape[1:], self.roi, rng), self.roi, self.pad_value)
            if content_share(crop, self.pad_value) >= self.config.content_share:
                break
        result: np.ndarray = crop.astype(np.float32)
        return result


def random_centre(shape: Sequence[int], roi: Triple, rng: np.random.Generator) -> Triple:
    """Centre voxel of a crop that lies within the volume, all places equally likely.

    Along an axis shorter than the roi the volume is in the middle.
    """
    a, b, c = (
        window // 2 + int(rng.integers(edge - window + 1)) if edge >= window else edge // 2
        for edge, window in zip(shape, roi, strict=True)
    )
    return (a, b, c)


def content_share(crop: np.ndarray, pad_value: float) -> float:
    """Share of the voxels of `[C, h, w, d]` that are not air or padding in any channel."""
    return float(np.mean((np.abs(crop.astype(np.float32) - pad_value) > _SAME).any(axis=0)))


def change(crop: np.ndarray, config: CropConfig, rng: np.random.Generator, *, pad_value: float) -> np.ndarray:
    """Mirror `[C, h, w, d]` and change its intensity; scaling leaves `pad_value` where it is."""
    axes = tuple(axis for axis, share in enumerate(config.flip, start=1) if rng.random() < share)
    crop = np.flip(crop, axes) if axes else crop
    factor = _offset(config.intensity_scale, rng)
    shift = _offset(config.intensity_shift, rng)
    result: np.ndarray = np.ascontiguousarray((crop - pad_value) * (1 + factor) + pad_value + shift)
    return result.astype(np.float32)


def _offset(setting: tuple[float, float], rng: np.random.Generator) -> float:
    probability, largest = setting
    drawn = float(rng.uniform(-largest, largest))
    return drawn if rng.random() < probability else 0.0
