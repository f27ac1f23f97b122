"""Numbers per label against their definitions, on oblique grids too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from predict.threshold_model import BRATS
from sparseg.predict.decide import make_decision
from sparseg.predict.statistics import ConfidentDecision, measure_labels

NAMES = {0: "background", 1: "liver", 4: "tumor", 300: "cyst"}


def oblique():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.7, 1.9, 3.0]
    affine[:3, 3] = (12.0, -40.0, 7.5)
    return affine


def test_a_box_by_hand():
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[2:4, 1:5, 3] = 1
    affine = np.diag([-2.0, 1.0, 5.0, 1.0])
    affine[:3, 3] = (10.0, 20.0, -30.0)
    liver = measure_labels(labels, affine, {0: "background", 1: "liver"})["liver"]
    assert (liver.label, liver.voxels, liver.volume_ml) == (1, 8, 0.08)
    assert liver.centroid_mm == (5.0, 22.5, -15.0)
    assert liver.box_vox == ((2, 3), (1, 4), (3, 3))
    assert liver.box_mm == ((3.0, 20.5, -17.5), (7.0, 24.5, -12.5))
    assert not liver.touches_border
    assert liver.mean_confidence is None


@pytest.mark.parametrize("order", ["C", "F"])
def test_many_voxels_against_their_definitions(order):
    rng = np.random.default_rng(1)
    labels = np.asarray(rng.choice([0, 0, 0, 1, 4, 300], size=(11, 13, 6)).astype(np.uint16), order=order)
    affine = oblique()
    found = measure_labels(labels, affine, NAMES, confidence={4: 0.87654})
    assert list(found) == ["liver", "tumor", "cyst"]
    for label, name in NAMES.items():
        if not label:
            continue
        places = np.argwhere(labels == label)
        world = places @ affine[:3, :3].T + affine[:3, 3]
        assert found[name].voxels == len(places)
        assert found[name].volume_ml == pytest.approx(len(places) * 0.7 * 1.9 * 3 / 1000, abs=5e-4)
        np.testing.assert_allclose(found[name].centroid_mm, world.mean(axis=0), atol=1e-3)
        ends = np.stack([places.min(axis=0), places.max(axis=0)], axis=1)
        np.testing.assert_array_equal(found[name].box_vox, ends)
    assert found["tumor"].mean_confidence == 0.8765
    assert found["liver"].mean_confidence is None


def test_the_box_in_mm_holds_every_voxel_with_its_edges():
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[3:6, 2:4, 1:3] = 1
    affine = oblique()
    low, high = measure_labels(labels, affine, {0: "background", 1: "liver"})["liver"].box_mm
    offsets = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    corners = (np.argwhere(labels)[:, None] + offsets).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(low, corners.min(axis=0), atol=1e-3)
    np.testing.assert_allclose(high, corners.max(axis=0), atol=1e-3)


@pytest.mark.parametrize("at", [(0, 4, 4), (8, 4, 4), (4, 0, 4), (4, 8, 4), (4, 4, 0), (4, 4, 8)])
def test_every_side_of_the_grid_is_its_border(at):
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4, 4, 4] = 1
    assert not measure_labels(labels, np.eye(4), {0: "background", 1: "a"})["a"].touches_border
    labels[at] = 1
    assert measure_labels(labels, np.eye(4), {0: "background", 1: "a"})["a"].touches_border


def test_a_label_without_voxels_has_no_place():
    absent = measure_labels(np.zeros((3, 3, 3), np.uint8), np.eye(4), NAMES, confidence={})["cyst"]
    assert (absent.label, absent.voxels, absent.volume_ml) == (300, 0, 0.0)
    assert absent.centroid_mm is absent.box_vox is absent.box_mm is absent.mean_confidence is None
    assert not absent.touches_border


def test_confidence_is_the_mean_softmax_of_the_label_chosen():
    torch.manual_seed(0)
    logits = 2 * torch.randn(4, 7, 6, 10)
    decide = ConfidentDecision(NAMES, {})
    ids = torch.cat([decide(logits[..., :4]), decide(logits[..., 4:])], dim=-1)
    torch.testing.assert_close(ids, make_decision(NAMES, {})(logits))
    best = logits.softmax(dim=0).amax(dim=0).double()
    expected = {label: float(best[ids == label].mean()) for label in (1, 4, 300)}
    assert decide.mean_confidence() == pytest.approx(expected, rel=1e-6)


def test_confidence_of_regions_is_that_of_the_region_painted_last():
    torch.manual_seed(1)
    logits = 2 * torch.randn(3, 6, 6, 6)
    decide = ConfidentDecision([0, 1, 2, 3], BRATS)
    ids = decide(logits)
    torch.testing.assert_close(ids, make_decision([0, 1, 2, 3], BRATS)(logits))
    probability = logits.sigmoid().double()
    expected = {label: float(probability[label - 1][ids == label].mean()) for label in (1, 2, 3)}
    assert decide.mean_confidence() == pytest.approx(expected, rel=1e-6)


def test_only_background_has_no_confidence():
    logits = torch.stack([torch.ones(2, 2, 2), torch.zeros(2, 2, 2)])
    decide = ConfidentDecision([0, 1], {})
    assert not decide(logits).any()
    assert decide.mean_confidence() == {}
