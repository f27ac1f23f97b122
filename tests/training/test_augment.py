"""Augmentation: image and label move as one, and each intensity change does what it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparseg.config import parse_config
from sparseg.errors import ConfigError
from sparseg.training.augment import LabelContrast, ThinSlab, augment, make_augmentation
from sparseg.training.config import AugmentConfig

OFF: dict[str, Any] = {
    "flip": (0, 0, 0), "rot90": 0, "affine": 0, "elastic": 0, "thin_slab": 0,
    "label_contrast": (0, 0.2), "class_contrast": (0, 0.2),
    "noise": (0, 0.05), "blur": (0, 1.0), "contrast": (0, 0.5), "intensity_scale": (0, 0.1),
    "intensity_shift": (0, 0.1),
}  # fmt: skip
ROI = (16, 16, 12)
PAD = -1.0


def coded(margin: tuple[int, int, int] = (24, 24, 18)) -> dict[str, np.ndarray]:
    """A label of three off-centre boxes, and an image that says the same: -1, -0.5, 0, 0.5."""
    label = np.zeros(margin, dtype=np.uint8)
    label[6:14, 6:11, 5:12] = 1
    label[14:19, 9:17, 4:9] = 2
    label[7:12, 12:18, 10:15] = 3
    return {"image": (label[None] * 0.5 + PAD).astype(np.float32), "label": label[None]}


def run(seed: int, roi: tuple[int, int, int] = ROI, **on: Any) -> tuple[Tensor, Tensor]:
    chain = make_augmentation(AugmentConfig.model_validate(OFF | on), roi)
    return augment(coded(), chain, pad_value=PAD, seed=seed)


def agreement(image: Tensor, label: Tensor) -> float:
    """Share of the voxels at which the rounded image says what the label says."""
    return float((((image - PAD) / 0.5).round().long() == label).float().mean())


def inner_agreement(image: Tensor, label: Tensor) -> float:
    """The same away from borders, where interpolation blurs the image and "nearest" decides the label."""
    highest, lowest = (sign * F.max_pool3d(sign * label.float(), 3, 1, 1) for sign in (1, -1))
    return agreement(image[highest == lowest], label[highest == lowest])


def test_all_off_is_the_middle_of_the_crop() -> None:
    image, label = run(0)
    crop = coded()
    assert torch.equal(label, torch.from_numpy(crop["label"][:, 4:20, 4:20, 3:15]).long())
    assert agreement(image, label) == 1.0


@pytest.mark.parametrize("on", [{"flip": (1, 0, 0)}, {"flip": (0, 1, 0)}, {"flip": (0, 0, 1)}])
def test_flips_turn_one_axis(on: dict[str, Any]) -> None:
    image, label = run(1, **on)
    _, plain = run(1)
    axis = on["flip"].index(1) + 1
    assert torch.equal(label, plain.flip(axis))
    assert not torch.equal(label, plain)
    assert agreement(image, label) == 1.0


def test_quarter_turns_stay_in_the_axial_plane() -> None:
    _, plain = run(2)
    found = set()
    for seed in range(8):
        image, label = run(seed, rot90=1.0)
        turns = [n for n in (1, 2, 3) if torch.equal(label, plain.rot90(n, (1, 2)))]
        assert len(turns) == 1
        assert agreement(image, label) == 1.0
        found |= set(turns)
    assert len(found) > 1


def test_quarter_turns_are_off_where_they_would_change_the_shape() -> None:
    roi = (16, 12, 12)
    _, plain = run(0, roi)
    for seed in range(4):
        assert torch.equal(run(seed, roi, rot90=1.0)[1], plain)


@pytest.mark.parametrize(
    "on", [{"affine": 1.0}, {"elastic": 1.0, "elastic_spacing_vox": 8.0}, {"affine": 1.0, "elastic": 1.0}]
)
def test_deformations_move_image_and_label_together(on: dict[str, Any]) -> None:
    _, plain = run(3)
    changed = 0
    for seed in range(4):
        image, label = run(seed, **on)
        assert inner_agreement(image, label) > 0.99
        assert set(label.unique().tolist()) <= {0, 1, 2, 3}
        changed += int((label != plain).sum())
    assert changed > 200


@pytest.mark.parametrize("on", [{"affine": 1.0}, {"elastic": 1.0, "elastic_spacing_vox": 8.0}])
def test_deformations_invent_no_label(on: dict[str, Any]) -> None:
    """Interpolated ids between 0 and 3 would round to 1 and 2 at the border."""
    crop = coded()
    crop["label"] = np.where(crop["label"] > 0, 3, 0).astype(np.uint8)
    chain = make_augmentation(AugmentConfig.model_validate(OFF | on), ROI)
    for seed in range(3):
        _, label = augment(crop, chain, pad_value=PAD, seed=seed)
        assert label.unique().tolist() == [0, 3]


def test_a_mismatch_would_be_seen() -> None:
    image, label = run(4)
    assert inner_agreement(image, label) == 1.0
    assert inner_agreement(image.flip(1), label) < 0.9
    assert inner_agreement(image.roll(2, 2), label) < 0.95


def test_the_same_seed_gives_the_same_crop_in_any_order() -> None:
    chain = make_augmentation(AugmentConfig(affine=1.0, elastic=0.5, thin_slab=0.5, noise=(0.5, 0.1)), ROI)
    first = [augment(coded(), chain, pad_value=PAD, seed=seed)[0] for seed in (1, 2, 2**40 + 3)]
    second = [augment(coded(), chain, pad_value=PAD, seed=seed)[0] for seed in (2**40 + 3, 2, 1)]
    for a, b in zip(first, reversed(second), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("on", "low", "high"),
    [
        ({"intensity_shift": (1, 0.1)}, 1e-3, 0.1),
        ({"intensity_scale": (1, 0.1)}, 1e-3, 0.15),
        ({"noise": (1, 0.05)}, 1e-2, 0.5),
        ({"blur": (1, 1.0)}, 1e-2, 1.5),
        ({"contrast": (1, 0.5)}, 1e-3, 1.0),
    ],
)
def test_intensity_changes_leave_the_label(on: dict[str, Any], low: float, high: float) -> None:
    image, label = run(5, **on)
    plain, expected = run(5)
    assert torch.equal(label, expected)
    assert low < float((image - plain).abs().max()) <= high


AMOUNTS = (
    *("label_contrast", "class_contrast", "noise", "blur"),
    *("contrast", "intensity_scale", "intensity_shift"),
)


def test_changes_of_amount_0_change_nothing() -> None:
    none: dict[str, Any] = {"elastic": 1, "elastic_magnitude": 0, "affine": 1, "rotate_deg": 0, "scale": 0}
    amounts = dict.fromkeys(AMOUNTS, (1, 0)) | {"blur": (0, 0)}  # blurring begins at a quarter of a voxel
    image, label = run(3, **none, **amounts)
    plain, plain_label = run(3)
    assert torch.equal(label, plain_label)
    assert torch.allclose(image, plain, atol=1e-5)


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("amount", [-1.0, math.inf, math.nan])
def test_amounts_are_at_least_0(name: str, amount: float) -> None:
    with pytest.raises(ConfigError, match=name):
        parse_config(AugmentConfig, {name: (1, amount)})


def test_what_lies_outside_stays_outside() -> None:
    """The chain works relative to the pad value: scaling and gamma do not move air."""
    image, label = run(6, intensity_scale=(1, 0.3), contrast=(1, 0.5))
    assert (image[label == 0] - PAD).abs().max() <= 1e-5


def contrast(common: tuple[float, float], single: tuple[float, float]) -> tuple[list[float], bool]:
    """Offset of each of the labels 0 to 3, and whether the inputs stayed as they were."""
    crop = {
        "image": torch.zeros(2, 4, 4, 4),
        "label": torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 4, 4).clone(),
    }
    transform = LabelContrast(common, single)
    transform.set_random_state(0)
    found = transform(crop)
    offsets = [found["image"][:, value].unique().tolist() for value in range(4)]
    assert [len(one) for one in offsets] == [1] * 4
    untouched = found["label"] is crop["label"] and torch.equal(crop["image"], torch.zeros(2, 4, 4, 4))
    return [one[0] for one in offsets], untouched


def test_class_contrast_shifts_each_structure_on_its_own() -> None:
    offsets, untouched = contrast((0.0, 0.2), (1.0, 0.2))
    assert untouched
    assert offsets[0] == 0.0
    assert all(0 < abs(offset) <= 0.2 for offset in offsets[1:])
    assert len(set(offsets)) == 4


def test_label_contrast_shifts_all_structures_alike() -> None:
    offsets, untouched = contrast((1.0, 0.2), (0.0, 0.2))
    assert untouched
    assert offsets[0] == 0.0
    assert len(set(offsets[1:])) == 1
    assert 0 < abs(offsets[1]) <= 0.2
    assert contrast((0.0, 0.2), (0.0, 0.2)) == ([0.0] * 4, True)


def test_thin_slab_takes_slices_from_anywhere_and_puts_them_in_the_middle() -> None:
    ramp = torch.arange(1.0, 13.0).expand(1, 3, 3, 12)
    crop = {"image": ramp.clone(), "label": ramp.clone()}
    transform = ThinSlab(1.0)
    transform.set_random_state(0)
    widths, firsts = set(), set()
    for _ in range(600):
        found = transform(crop)
        assert torch.equal(found["image"], found["label"])
        row = found["image"][0, 0, 0]
        kept = row.nonzero().flatten().tolist()
        assert kept == list(range(kept[0], kept[0] + len(kept)))
        assert abs(kept[0] - (11 - kept[-1])) <= 1
        assert row[kept].diff().tolist() == [1.0] * (len(kept) - 1)
        widths.add(len(kept))
        firsts.add(float(row[kept[0]]))
    assert (min(widths), max(widths)) == (3, 12)
    assert (min(firsts), max(firsts)) == (1.0, 10.0)
    assert torch.equal(crop["image"], ramp)
    never = ThinSlab(0.0)
    never.set_random_state(0)
    assert torch.equal(never(crop)["image"], crop["image"])
