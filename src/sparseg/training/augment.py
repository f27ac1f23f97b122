"""Random spatial and intensity changes of training crops, by MONAI's transforms, seeded per crop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from torch import Tensor

from sparseg.shapes import Triple
from sparseg.training.config import AugmentConfig

BOTH = ("image", "label")


class ThinSlab(Randomizable):  # type: ignore[misc]
    """Keeps a random slab along the last axis and pads the rest, as a scan of few slices appears to the
    network.

    Args:
        probability: Of doing anything.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, crop: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"image", "label"} with the background value already at 0 -> the same, outside the slab 0."""
        depth = crop["image"].shape[-1]
        if self.R.random() >= self.probability or depth < 2:
            return dict(crop)
        thickness = int(self.R.randint(max(1, depth // 4), depth + 1))
        # Windows pad short scans on both sides, so the slab stays in the middle.
        start = (depth - thickness) // 2
        mask = torch.zeros(depth)
        mask[start : start + thickness] = 1
        return {key: crop[key] * mask for key in BOTH}


class ClassContrast(Randomizable):  # type: ignore[misc]
    """Shifts the intensity of each labelled structure by an offset of its own.

    One scan shows an organ with one enhancement only; a network trained on it must not take that for the
    organ.

    Args:
        probability: Of shifting a structure.
        largest: Largest offset, in image units, either way.
    """

    def __init__(self, probability: float, largest: float) -> None:
        self.probability, self.largest = probability, largest

    def __call__(self, crop: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"image", "label"} -> the same with the image changed inside labels 1, 2, ..."""
        label = crop["label"].long()
        highest = int(label.max())
        chosen = self.R.random(highest + 1) < self.probability
        offsets = torch.as_tensor(self.R.uniform(-self.largest, self.largest, highest + 1) * chosen)
        offsets[0] = 0.0
        return {"image": crop["image"] + offsets.to(crop["image"].dtype)[label], "label": crop["label"]}


def make_augmentation(config: AugmentConfig, roi: Triple) -> Compose:
    """Chain of transforms from a crop with margin to a crop of `roi`.

    Keys image (background at 0) and label.
    """
    angle = math.radians(config.rotate_deg)
    affine: dict[str, Any] = {
        "keys": BOTH,
        "rotate_range": (angle,) * 3,
        "scale_range": (config.scale,) * 3,
        "spatial_size": roi,
        "mode": ("bilinear", "nearest"),
        "padding_mode": "zeros",
    }
    elastic = Rand3DElasticd(
        **affine,
        prob=1.0,
        sigma_range=(config.elastic_sigma_vox, config.elastic_sigma_vox * 1.5),
        magnitude_range=(0.0, config.elastic_magnitude_vox),
    )
    rot90 = config.rot90 if roi[0] == roi[1] else 0.0
    steps: list[Any] = [
        _Either(elastic, RandAffined(**affine, prob=config.affine), config.affine * config.elastic)
    ]
    steps += [RandFlipd(BOTH, prob=prob, spatial_axis=axis) for axis, prob in enumerate(config.flip)]
    steps += [RandRotate90d(BOTH, prob=rot90, spatial_axes=(0, 1))]
    steps += [
        ClassContrast(*config.class_contrast),
        RandGaussianSmoothd("image", prob=config.blur[0], **_sigmas(config.blur[1])),
        RandAdjustContrastd(
            "image", prob=config.contrast[0], gamma=(2 ** -config.contrast[1], 2 ** config.contrast[1])
        ),
        RandScaleIntensityd("image", factors=config.intensity_scale[1], prob=config.intensity_scale[0]),
        RandShiftIntensityd("image", offsets=config.intensity_shift[1], prob=config.intensity_shift[0]),
        RandGaussianNoised("image", prob=config.noise[0], std=config.noise[1]),
        ThinSlab(config.thin_slab),
    ]
    return Compose(steps)


def augment(
    crop: Mapping[str, np.ndarray], chain: Compose, *, pad_value: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Apply a chain to one crop.

    Args:
        crop: `image` `[C, h, w, d]` float32 and `label` `[1, h, w, d]`, a margin larger than the roi.
        chain: From `make_augmentation`.
        pad_value: Image value outside a volume; the chain works on values relative to it.
        seed: Fixes every random choice.

    Returns:
        Image `[C, *roi]` float32 and label `[1, *roi]` int64.
    """
    chain.set_random_state(seed=seed % 2**32)
    data = {
        "image": torch.from_numpy(crop["image"]) - pad_value,
        "label": torch.from_numpy(crop["label"].astype(np.float32)),
    }
    changed = chain(data)
    image = torch.as_tensor(changed["image"]).float() + pad_value
    return image.contiguous(), torch.as_tensor(changed["label"]).round().long().contiguous()


class _Either(Randomizable):  # type: ignore[misc]
    """One of two transforms: the first with the given probability."""

    def __init__(self, first: Any, second: Any, probability: float) -> None:
        self.first, self.second, self.probability = first, second, probability

    def set_random_state(self, seed: int | None = None, state: Any = None) -> _Either:
        super().set_random_state(seed, state)
        self.first.set_random_state(state=self.R)
        self.second.set_random_state(state=self.R)
        return self

    def __call__(self, data: Any) -> Any:
        return self.first(data) if self.R.random() < self.probability else self.second(data)


def _sigmas(largest: float) -> dict[str, tuple[float, float]]:
    return {f"sigma_{axis}": (0.25, max(largest, 0.25)) for axis in "xyz"}
