"""Crops: where they lie, what they hold, and that only their number decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sparseg.training.augment import make_augmentation
from sparseg.training.config import AugmentConfig
from sparseg.training.sampling import CropDataset, choose_centre, cut
from training.toy import MemoryCase

ROI = (8, 8, 6)


def case(seed: int = 0, shape: tuple[int, int, int] = (20, 17, 13)) -> MemoryCase:
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, dtype=np.uint8)
    label[2:4, 3:6, 5:9] = 1
    label[12:18, 9:14, 1:8] = 2
    return MemoryCase(rng.normal(size=(2, *shape)).astype(np.float32), label[None])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_roi_stays_inside(share: float) -> None:
    made, rng = case(), np.random.default_rng(1)
    for _ in range(300):
        centre = choose_centre(made, ROI, share, rng)
        for voxel, edge, window in zip(centre, made.label.shape[1:], ROI, strict=True):
            assert voxel - window // 2 >= 0
            assert voxel - window // 2 + window <= edge


def test_a_roi_larger_than_the_volume_is_centred() -> None:
    made = case(shape=(20, 17, 13))
    centre = choose_centre(made, (32, 8, 32), 0.0, np.random.default_rng(2))
    assert (centre[0], centre[2]) == (10, 6)


def test_positive_crops_are_centred_on_labels_classes_equally_often() -> None:
    made, rng = case(), np.random.default_rng(3)
    counts = np.zeros(3, dtype=int)
    for _ in range(600):
        i, j, k = choose_centre(made, (1, 1, 1), 1.0, rng)
        counts[made.label[0, i, j, k]] += 1
    assert counts[0] == 0
    assert abs(counts[1] - 300) < 60  # class 1 has a ninth of the voxels of class 2


def test_the_share_of_positive_crops_is_the_one_asked_for() -> None:
    made, rng = case(), np.random.default_rng(4)
    labelled = float((made.label > 0).mean())
    hits = sum(made.label[(0, *choose_centre(made, (1, 1, 1), 0.5, rng))] > 0 for _ in range(1000))
    assert abs(hits / 1000 - (0.5 + 0.5 * labelled)) < 0.05


def test_a_case_without_labels_is_sampled_everywhere() -> None:
    made = MemoryCase(np.zeros((1, 9, 9, 9), np.float32), np.zeros((1, 9, 9, 9), np.uint8))
    rng = np.random.default_rng(5)
    assert len({choose_centre(made, (1, 1, 1), 1.0, rng) for _ in range(200)}) > 100


@pytest.mark.parametrize("centre", [(10, 8, 6), (0, 0, 0), (19, 16, 12), (3, 15, 2)])
@pytest.mark.parametrize("size", [(4, 4, 4), (7, 5, 3), (30, 2, 40)])
def test_cut_is_pad_then_slice(centre: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    array = case().image
    padded = np.pad(array, [(0, 0)] + [(40, 40)] * 3, constant_values=-7)
    box = tuple(slice(40 + c - s // 2, 40 + c - s // 2 + s) for c, s in zip(centre, size, strict=True))
    found = cut(array, centre, size, -7)
    assert found.dtype == array.dtype
    assert np.array_equal(found, padded[(slice(None), *box)])


def crops(seed: int = 0, **changes: object) -> CropDataset:
    config = AugmentConfig.model_validate({"affine": 0.7, "noise": (0.5, 0.1), "thin_slab": 0.3} | changes)
    return CropDataset(
        [case(1), case(2, (12, 30, 9))],
        ROI,
        make_augmentation(config, ROI),
        positive_share=0.5,
        pad_value=-1.0,
        seed=seed,
    )


def test_a_crop_depends_only_on_seed_and_number() -> None:
    one, two, other = crops(), crops(), crops(seed=1)
    in_order = [one[number] for number in range(6)]
    backwards = [two[number] for number in reversed(range(6))][::-1]
    for a, b in zip(in_order, backwards, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert not torch.equal(in_order[0][0], in_order[1][0])
    assert not torch.equal(in_order[0][0], other[0][0])
    image, label = in_order[0]
    assert (image.shape, image.dtype) == ((2, *ROI), torch.float32)
    assert (label.shape, label.dtype) == ((1, *ROI), torch.int64)
    assert {int(v) for _, part in in_order for v in part.unique()} <= {0, 1, 2}


@pytest.mark.slow
def test_a_worker_cuts_the_same_crops() -> None:
    def rows(num_workers: int) -> list[torch.Tensor]:
        loader = DataLoader(
            crops(),
            batch_sampler=[[0, 1], [2, 3]],
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(num_workers),
        )
        return [image for image, _ in loader]

    for a, b in zip(rows(0), rows(1), strict=True):
        assert torch.equal(a, b)


def test_without_augmentation_a_crop_is_the_cut() -> None:
    silent = dict.fromkeys(("affine", "rot90", "thin_slab"), 0.0) | {"flip": (0, 0, 0)}
    silent |= dict.fromkeys(("noise", "blur", "contrast", "intensity_scale", "intensity_shift"), (0.0, 0.1))
    made = crops(**silent)
    image, label = made[3]
    rng = np.random.default_rng((0, 3))
    chosen = made.cases[int(rng.integers(2))]
    centre = choose_centre(chosen, ROI, 0.5, rng)
    assert np.abs(image.numpy() - cut(chosen.image, centre, ROI, -1.0)).max() <= 1e-6
    assert np.array_equal(label.numpy(), cut(chosen.label, centre, ROI, 0))
