"""Clean-up by class: what is removed, what is filled, what is left alone, and how much in ml."""

from __future__ import annotations

import numpy as np
import pytest

from sparseg.errors import ConfigError
from sparseg.predict.cleanup import Cleanup, clean_labels

NAMES = {0: "background", 1: "liver", 2: "tumor", 7: "spleen"}
AFFINE = np.diag([-2.0, 1.0, 5.0, 1.0])  # 0.01 ml per voxel


def cube(labels, label, start, edge):
    labels[tuple(slice(s, s + edge) for s in start)] = label
    return labels


def blank(shape=(16, 15, 14), dtype=np.uint8):
    return np.zeros(shape, dtype)


def clean(labels, **wanted):
    return clean_labels(labels, AFFINE, NAMES, Cleanup(**wanted))


def two_livers():
    labels = cube(cube(blank(), 1, (1, 1, 1), 4), 1, (9, 9, 9), 3)
    return cube(cube(labels, 7, (9, 1, 1), 2), 7, (1, 9, 9), 3)


def test_nothing_is_asked_for_by_default():
    assert not Cleanup()
    labels = two_livers()
    report = clean(labels)
    np.testing.assert_array_equal(labels, two_livers())
    assert (report.removed_ml, report.filled_ml) == ({}, {})


def test_the_largest_component_of_the_classes_named_stays():
    labels = two_livers()
    report = clean(labels, largest_component=("liver",))
    np.testing.assert_array_equal(labels, cube(two_livers(), 0, (9, 9, 9), 3))
    assert report.removed_ml == {"liver": 0.27}


def test_all_classes_by_one_word():
    labels = two_livers()
    report = clean(labels, largest_component=("all",))
    np.testing.assert_array_equal(labels, cube(cube(blank(), 1, (1, 1, 1), 4), 7, (1, 9, 9), 3))
    assert report.removed_ml == {"liver": 0.27, "spleen": 0.08}


def test_components_hang_together_over_corners():
    labels = cube(cube(blank(), 1, (1, 1, 1), 4), 1, (5, 5, 5), 2)
    expected = labels.copy()
    assert clean(labels, largest_component=("all",)).removed_ml == {}
    np.testing.assert_array_equal(labels, expected)


def test_the_first_of_equals_stays():
    labels = cube(cube(blank(), 2, (9, 9, 9), 2), 2, (1, 1, 1), 2)
    clean(labels, largest_component=("tumor",))
    np.testing.assert_array_equal(labels, cube(blank(), 2, (1, 1, 1), 2))


@pytest.mark.parametrize(
    ("min_ml", "removed"), [(0.08, {}), (0.081, {"spleen": 0.08}), (0.27, {"spleen": 0.08})]
)
def test_components_below_a_volume_go(min_ml, removed):
    labels = two_livers()
    report = clean(labels, min_ml=min_ml)
    assert report.removed_ml == removed
    assert np.count_nonzero(labels) == np.count_nonzero(two_livers()) - (8 if removed else 0)


def test_all_components_of_a_class_may_be_too_small():
    labels = cube(blank(dtype=np.uint16), 7, (0, 0, 0), 2)
    assert clean(labels, min_ml=1.0, largest_component=("all",)).removed_ml == {"spleen": 0.08}
    assert not labels.any()


def test_a_hole_is_filled_with_the_class_around_it():
    labels = cube(cube(blank(), 7, (1, 1, 1), 6), 0, (3, 3, 3), 2)
    labels[4, 4, 5] = 0  # no regular shape
    report = clean(labels, fill_holes=("spleen",))
    np.testing.assert_array_equal(labels, cube(blank(), 7, (1, 1, 1), 6))
    assert report.filled_ml == {"spleen": 0.09}


def test_other_classes_keep_their_holes():
    labels = cube(cube(blank(), 7, (1, 1, 1), 6), 0, (3, 3, 3), 2)
    expected = labels.copy()
    assert clean(labels, fill_holes=("liver",)).filled_ml == {}
    np.testing.assert_array_equal(labels, expected)


def test_a_hole_inside_the_tumour_becomes_tumour_not_liver():
    labels = cube(cube(cube(blank(), 1, (1, 1, 1), 9), 2, (3, 3, 3), 5), 0, (5, 5, 5), 1)
    expected = cube(cube(blank(), 1, (1, 1, 1), 9), 2, (3, 3, 3), 5)
    assert clean(labels, fill_holes=("all",)).filled_ml == {"tumor": 0.01}
    np.testing.assert_array_equal(labels, expected)


def test_a_hole_between_two_classes_is_left():
    labels = cube(cube(blank(), 1, (1, 1, 1), 6), 0, (3, 3, 3), 2)
    labels[3, 3, 3] = 2
    expected = labels.copy()
    assert clean(labels, fill_holes=("all",)).filled_ml == {}
    np.testing.assert_array_equal(labels, expected)


def test_a_speck_in_a_hole_is_removed_before_the_hole_is_filled():
    labels = cube(cube(blank(), 1, (1, 1, 1), 6), 0, (3, 3, 3), 2)
    labels[3, 3, 3] = 2
    report = clean(labels, min_ml=0.05, fill_holes=("liver",))
    np.testing.assert_array_equal(labels, cube(blank(), 1, (1, 1, 1), 6))
    assert (report.removed_ml, report.filled_ml) == ({"tumor": 0.01}, {"liver": 0.08})


@pytest.mark.parametrize(
    ("opening", "filled"),
    [((3, 3, 1), False), ((0, 0, 0), True)],
    ids=["a face leads out", "a corner does not"],
)
def test_what_counts_as_a_way_out(opening, filled):
    labels = cube(cube(blank(), 1, (1, 1, 1), 4), 0, (2, 2, 2), 2)
    labels[tuple(np.add(opening, 0))] = 0
    labels[1, 1, 1] = 0 if filled else 1
    assert bool(clean(labels, fill_holes=("all",)).filled_ml) == filled


def test_a_cavity_at_the_border_of_the_grid_is_open():
    labels = cube(blank(), 1, (0, 1, 1), 5)
    labels[0, 3, 3] = 0
    expected = labels.copy()
    assert clean(labels, fill_holes=("all",)).filled_ml == {}
    np.testing.assert_array_equal(labels, expected)


def test_against_scipy_on_noise():
    from scipy.ndimage import binary_fill_holes, generate_binary_structure
    from scipy.ndimage import label as components

    noise = (np.random.default_rng(3).random((18, 17, 16)) < 0.6).astype(np.uint8)
    labels = noise.copy()
    clean(labels, fill_holes=("all",))
    np.testing.assert_array_equal(labels > 0, binary_fill_holes(noise, generate_binary_structure(3, 1)))
    sparse = (np.random.default_rng(4).random((18, 17, 16)) < 0.05).astype(np.uint8)
    numbered, _ = components(sparse, np.ones((3, 3, 3)))
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    labels = sparse.copy()
    clean(labels, min_ml=0.03)
    np.testing.assert_array_equal(labels > 0, (sizes >= 3)[numbered])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 9), (9, 1, 9), (2, 2, 9)])
def test_thin_volumes(shape):
    labels = np.ones(shape, np.uint8)
    report = clean(labels, largest_component=("all",), fill_holes=("all",), min_ml=0.01)
    assert labels.all()
    assert (report.removed_ml, report.filled_ml) == ({}, {})


def test_an_empty_volume():
    assert clean(blank(), largest_component=("all",), fill_holes=("all",), min_ml=1).removed_ml == {}


@pytest.mark.parametrize("field", ["largest_component", "fill_holes"])
def test_a_class_the_model_has_not(field):
    with pytest.raises(ConfigError, match="kidney") as caught:
        Cleanup(**{field: ("liver", "kidney")}).check_names(NAMES)
    assert "choose from: liver, tumor, spleen; or all" in caught.value.remedy


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_volumes_that_are_none(value):
    with pytest.raises(ConfigError, match="0 ml or more"):
        Cleanup(min_ml=value)
