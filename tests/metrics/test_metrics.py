"""Metrics against values known beforehand, and the rules for empty structures."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from sparseg.errors import ShapeError
from sparseg.metrics.overlap import dice
from sparseg.metrics.surface import hd95_mm, nsd

SPACING = (1.0, 2.0, 3.0)


def cube(start, edge=6, shape=(20, 18, 16), label=1):
    labels = np.zeros(shape, np.int32)
    labels[tuple(slice(s, s + edge) for s in start)] = label
    return labels


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_shifted_cube(axis, shift):
    ref = cube((4, 4, 4))
    pred = cube(tuple(4 + shift * (a == axis) for a in range(3)))
    assert dice(pred, ref, 2) == {1: pytest.approx((6 - shift) / 6)}
    # A face of 36 of the 152 surface voxels lies `shift` voxels off: far more than 5 %.
    assert hd95_mm(pred, ref, SPACING, num_classes=2) == {1: pytest.approx(shift * SPACING[axis])}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_dice_counts_areas_in_mm(axis):
    shape = (40, 40, 40)
    ref = cube((2, 2, 2), 24, shape)
    pred = cube(tuple(2 + 12 * (a == axis) for a in range(3)), 24, shape)
    wide = nsd(pred, ref, SPACING, num_classes=2, tolerance_mm=12 * SPACING[axis] + 0.01)
    assert wide[1] == pytest.approx(1)
    tight = nsd(pred, ref, SPACING, num_classes=2, tolerance_mm=0.01)[1]
    # Half of each side lies on the other cube and both ends are off; in mm, faces differ threefold in area.
    # The tolerance is one ring of rounded edge out of 24.
    faces = [SPACING[(a + 1) % 3] * SPACING[(a + 2) % 3] for a in range(3)]
    assert tight == pytest.approx(0.5 * (1 - faces[axis] / sum(faces)), abs=1 / 24)
    assert nsd(ref, ref, SPACING, num_classes=2, tolerance_mm=0.01)[1] == 1


def test_equals_monai_on_the_uncut_volume():
    rng = np.random.default_rng(0)
    pred, ref = (cube((0, 5, 3), 9) | (rng.random((20, 18, 16)) > 0.99) for _ in range(2))
    both = [torch.from_numpy(a.astype(bool))[None, None] for a in (pred, ref)]
    kwargs = {"include_background": True, "spacing": list(SPACING)}
    expected = float(compute_hausdorff_distance(*both, percentile=95, **kwargs))
    assert hd95_mm(pred, ref, SPACING, num_classes=2)[1] == pytest.approx(expected, abs=1e-5)
    expected = float(compute_surface_dice(*both, class_thresholds=[2.5], use_subvoxels=True, **kwargs))
    assert nsd(pred, ref, SPACING, num_classes=2, tolerance_mm=2.5)[1] == pytest.approx(expected, abs=1e-6)


def test_rules_for_empty_structures():
    ref = cube((2, 2, 2), label=2) + cube((10, 10, 9), label=3)
    pred = cube((2, 2, 2), label=2) + cube((10, 2, 9), label=4)
    values = dice(pred, ref, 5)
    assert math.isnan(values[1])
    assert (values[2], values[3], values[4]) == (1, 0, 0)
    distances = hd95_mm(pred, ref, SPACING, num_classes=5)
    assert [math.isnan(distances[c]) for c in (1, 2, 3, 4)] == [True, False, True, True]
    surfaces = nsd(pred, ref, SPACING, num_classes=5, tolerance_mm=1)
    assert math.isnan(surfaces[1])
    assert (surfaces[2], surfaces[3], surfaces[4]) == (1, 0, 0)
    empty = np.zeros((3, 3, 3), np.uint8)
    assert math.isnan(dice(empty, empty, 2)[1])


def test_flat_and_single_voxel_structures():
    flat = np.zeros((5, 5, 1), np.uint8)
    flat[1:3, 1:3] = 1
    point = np.zeros((5, 5, 1), np.uint8)
    point[1, 1] = 1
    assert dice(flat, point, 2)[1] == pytest.approx(2 / 5)
    # 95th percentile of the four distances 0, 1, 2 and sqrt(5), with linear interpolation.
    expected = 2 + 0.85 * (math.sqrt(5) - 2)
    assert hd95_mm(flat, point, SPACING, num_classes=2)[1] == pytest.approx(expected, abs=1e-5)


def test_shapes_and_types_are_checked():
    with pytest.raises(ShapeError, match="one shape"):
        dice(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), 2)
    with pytest.raises(ShapeError, match="integers"):
        dice(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), 2)


@pytest.mark.filterwarnings("error")
def test_no_warning_reaches_the_caller():
    ref, pred = cube((4, 4, 4)), cube((5, 4, 4))
    hd95_mm(pred, ref, SPACING, num_classes=3)
    nsd(pred, ref, SPACING, num_classes=3, tolerance_mm=1)
    dice(pred, ref, 3)
