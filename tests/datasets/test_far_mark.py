"""Task far: the class is that of the mark of the column, and nothing nearer or broader tells it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sparseg.datasets.synth.far_mark import SHAPE, draw_far_mark

CASES = 24


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (image.array[0].astype(float), labels.array[0]) for image, labels in map(draw_far_mark, range(CASES))
    ]


def marks_first(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The case with its marks at the low end."""
    if np.argwhere(labels).mean(axis=0)[0] < SHAPE[0] / 2:
        return image[::-1], labels[::-1]
    return image, labels


def columns() -> list[tuple[slice, slice]]:
    return [(slice(w, w + 16), slice(d, d + 16)) for w in (0, 16) for d in (0, 16)]


def test_equal_numbers_give_equal_cases_and_others_differ(cases):
    image, labels = draw_far_mark(3)
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array[0], cases[3][0])
    assert np.array_equal(labels.array[0], cases[3][1])
    assert not np.array_equal(cases[3][1], cases[4][1])
    assert not np.array_equal(draw_far_mark(3, seed=1)[1].array[0], cases[3][1])


def test_the_mark_of_its_column_decides_the_class_of_a_nodule(cases):
    for image, labels in cases:
        image, labels = marks_first(image, labels)
        for box in columns():
            kinds = np.unique(labels[(slice(None), *box)])
            middle = image[(slice(5, 10), *(slice(part.start + 6, part.start + 10) for part in box))].mean()
            assert kinds.tolist() == [0, 1 if middle > 400 else 2]
            assert abs(middle - 400) > 200


def test_a_mark_lies_48_voxels_or_more_from_every_nodule_and_at_either_end(cases):
    ends = set()
    for image, labels in cases:
        place = np.argwhere(labels)[:, 0]
        ends.add(bool(place.mean() > SHAPE[0] / 2))
        _, ordered = marks_first(image, labels)
        # The marks end at voxel 8 + 6.
        assert np.argwhere(ordered)[:, 0].min() - 14 >= 48
    assert ends == {True, False}


def test_every_image_has_two_nodules_of_each_class_so_that_no_sum_tells_them_apart(cases):
    for _, labels in cases:
        parts, count = ndimage.label(labels)
        kinds = [int(labels[box].max()) for box in ndimage.find_objects(parts)]
        assert (count, sorted(kinds)) == (4, [1, 1, 2, 2])


def test_nodules_of_both_classes_look_alike(cases):
    means, sizes = ({1: [], 2: []} for _ in range(2))
    for image, labels in cases:
        parts, _ = ndimage.label(labels)
        for number, box in enumerate(ndimage.find_objects(parts), start=1):
            kind, inside = int(labels[box].max()), parts[box] == number
            means[kind].append(image[box][inside].mean())
            sizes[kind].append(inside.sum())
    for values in (means, sizes):
        spread = np.std(values[1] + values[2]) * np.sqrt(2 / (2 * CASES))
        assert abs(np.mean(values[1]) - np.mean(values[2])) < 3 * spread
