"""Random spatial and intensity changes of training crops, by MONAI's transforms, seeded per crop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    Randomizable,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSmoothDeformd,
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
        start = int(self.R.randint(0, depth - thickness + 1))
        # Windows pad short scans on both sides, so the slab moves to the middle.
        middle = (depth - thickness) // 2
        result = {key: torch.zeros_like(torch.as_tensor(crop[key])) for key in BOTH}
        for key, changed in result.items():
            changed[..., middle : middle + thickness] = crop[key][..., start : start + thickness]
        return result


class LabelContrast(Randomizable):  # type: ignore[misc]
    """Shifts the intensity of the labelled structures, all by one offset and some by one of their own.

    One scan shows an organ with one enhancement only; a network trained on it must not take that for the
    organ.

    Args:
        common: (probability, largest offset in image units) of the shift of all structures together.
        single: (probability per structure, largest offset in image units) of further shifts.
    """

    def __init__(self, common: tuple[float, float], single: tuple[float, float]) -> None:
        self.common, self.single = common, single

    def __call__(self, crop: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"image", "label"} -> the same with the image changed inside labels 1, 2, ..."""
        label = crop["label"].long()
        count = int(label.max()) + 1
        offsets = self.R.uniform(-self.single[1], self.single[1], count) * (
            self.R.random(count) < self.single[0]
        )
        if self.R.random() < self.common[0]:
            offsets += self.R.uniform(-self.common[1], self.common[1])
        offsets[0] = 0.0
        table = torch.as_tensor(offsets, dtype=crop["image"].dtype)
        return {"image": crop["image"] + table[label], "label": crop["label"]}


def margin_size(roi: Triple) -> Triple:
    """Size of the crop that the chain takes for an output of `roi`: half as large again, even."""
    h, w, d = (2 * math.ceil(edge * 0.75) for edge in roi)
    return (h, w, d)


def make_augmentation(config: AugmentConfig, roi: Triple) -> Compose:
    """Chain of transforms from a crop of `margin_size` to a crop of `roi`.

    Keys are image (background at 0) and label.
    """
    size = margin_size(roi)
    deform = RandSmoothDeformd(
        BOTH,
        spatial_size=size,
        rand_size=[max(2, round(edge / config.elastic_spacing_vox) + 1) for edge in size],
        field_mode="trilinear",
        # MONAI draws from no empty range. Left out, it would leave the steps behind it other random numbers.
        prob=config.elastic if config.elastic_magnitude else 0.0,
        def_range=2 * config.elastic_magnitude or 1.0,  # MONAI's unit is half an edge
        grid_mode=("bilinear", "nearest"),
        grid_padding_mode="zeros",
        grid_align_corners=True,  # MONAI's grid spans -1 to 1 over voxel centres
    )
    affine = RandAffined(
        BOTH,
        prob=config.affine,
        rotate_range=(math.radians(config.rotate_deg),) * 3,
        scale_range=(config.scale,) * 3,
        spatial_size=roi,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )
    steps: list[Any] = [deform, affine]
    steps += [RandFlipd(BOTH, prob=prob, spatial_axis=axis) for axis, prob in enumerate(config.flip)]
    steps += [RandRotate90d(BOTH, prob=config.rot90 if roi[0] == roi[1] else 0.0, spatial_axes=(0, 1))]
    steps += [
        LabelContrast(config.label_contrast, config.class_contrast),
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
    # MONAI's tensors carry a history of transforms that would follow the crop through the whole network.
    image, label = (torch.as_tensor(changed[key]).as_subclass(Tensor) for key in BOTH)
    return (image.float() + pad_value).contiguous(), label.round().long().contiguous()


def _sigmas(largest: float) -> dict[str, tuple[float, float]]:
    return {f"sigma_{axis}": (0.25, max(largest, 0.25)) for axis in "xyz"}
