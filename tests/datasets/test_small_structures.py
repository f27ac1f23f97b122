"""The small-structure task: what is drawn is what is labelled, and brightness alone finds none of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sparseg.datasets.synth import small_structures
from sparseg.datasets.synth.small_structures import LABELS, draw_small_structures
from sparseg.metrics.overlap import dice_of_masks

EDGE = 48


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray]:
    image, labels = draw_small_structures(3, seed=5, edge=EDGE)
    return image.array[0].astype(np.float64), labels.array[0]


def test_equal_numbers_give_equal_cases_and_others_differ(case):
    image, labels = draw_small_structures(3, seed=5, edge=EDGE)
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array[0], case[0])
    assert np.array_equal(labels.array[0], case[1])
    assert not np.array_equal(draw_small_structures(4, seed=5, edge=EDGE)[1].array[0], case[1])
    assert not np.array_equal(draw_small_structures(3, seed=6, edge=EDGE)[1].array[0], case[1])


def test_structures_are_a_few_voxels_thick_and_apart(case):
    _, labels = case
    assert set(np.unique(labels)) == set(LABELS)
    parts, count = ndimage.label(labels, np.ones((3, 3, 3)))
    assert count == 4 + 2  # of 12 nodules and 6 vessels per 72³ voxels; a gap keeps them apart
    for number in range(1, count + 1):
        inside = parts == number
        assert len(np.unique(labels[inside])) == 1
        # Twice the depth of the deepest voxel is the thickness up to a voxel: at most 6.
        padded = np.pad(inside, 1, constant_values=False)
        assert 1 <= ndimage.distance_transform_edt(padded).max() <= 3.6
    nodules = ndimage.find_objects(ndimage.label(labels == 1)[0])
    assert max(axis.stop - axis.start for box in nodules for axis in box) <= 7


def test_labelled_voxels_are_brighter_but_no_threshold_finds_them(case):
    image, labels = case
    assert image[labels > 0].mean() > image[labels == 0].mean() + 100
    for smoothing in (0.0, 1.0):
        smooth = ndimage.gaussian_filter(image, smoothing)
        levels = np.quantile(smooth, np.linspace(0.8, 0.9999, 30))
        for label in (1, 2):
            assert max(dice_of_masks(smooth > level, labels == label) for level in levels) < 0.25


def test_distances_of_each_kind_on_paper():
    offset = np.array([[3.0, 0, 0], [0, 4.0, 0], [0, 0, 5.0], [12.0, 0, 0]], dtype=np.float32).T
    offset = offset.reshape(3, 4, 1, 1)
    sphere = small_structures._sphere(offset, 2.0)[:, 0, 0]
    assert sphere.tolist() == [1.0, 2.0, 3.0, 10.0]
    # From the origin to (10, 0, 0): along it 0, beside it the height, behind its end what is left.
    segment = small_structures._to_segment(offset, np.array([10.0, 0, 0]))[:, 0, 0]
    assert segment.tolist() == [0.0, 4.0, 5.0, 2.0]
    length = np.linalg.norm(small_structures._direction(np.random.default_rng(0)))
    assert length == pytest.approx(1)


def test_a_full_volume_leaves_structures_out_and_ends():
    taken = np.ones((12, 12, 12), bool)
    rng = np.random.default_rng(0)
    assert list(small_structures._place("nodule", 2, taken, rng)) == []
