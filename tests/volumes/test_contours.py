"""Outlines hold exactly the voxel centres of their mask, by every rule that programs fill polygons by."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sparseg.volumes.contours import trace_mask

SQUARE = np.ones((3, 3), bool)


def crossings(polygon: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """For every centre the number of edges beyond it along the first axis, plain and signed."""
    i, j = np.indices(size)
    plain, signed = np.zeros(size, int), np.zeros(size, int)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        # Centres on an edge would be counted by chance: there are none.
        reached = (np.minimum(y0, y1) <= j) & (j < np.maximum(y0, y1))
        place = x0 + (j - y0) * (x1 - x0) / (y1 - y0)
        assert not np.any(reached & (np.abs(place - i) < 0.2))
        plain += reached & (place > i)
        signed += (reached & (place > i)) * (1 if y1 > y0 else -1)
    return plain, signed


def require_exact(mask: np.ndarray) -> list[np.ndarray]:
    """Fill the outlines by four rules and compare each with the mask."""
    polygons = trace_mask(mask)
    counts = [crossings(polygon, mask.shape) for polygon in polygons]
    plain = sum((plain for plain, _ in counts), np.zeros(mask.shape, int))
    signed = sum((signed for _, signed in counts), np.zeros(mask.shape, int))
    np.testing.assert_array_equal(plain % 2 == 1, mask)
    np.testing.assert_array_equal(signed != 0, mask)
    np.testing.assert_array_equal(signed == 1, mask)
    union = np.zeros(mask.shape, bool)
    for own, _ in counts:
        union |= own % 2 == 1
    np.testing.assert_array_equal(union, mask)
    return polygons


def area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@pytest.mark.parametrize("share", [0.15, 0.4, 0.5, 0.6, 0.85, 0.97])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (9, 12), (23, 14)])
def test_random_masks(share, size):
    for seed in range(12):
        require_exact(np.random.default_rng(seed).random(size) < share)


@pytest.mark.parametrize("seed", range(6))
def test_organs_with_holes_and_islands_in_them(seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((40, 31)), 1.5)
    mask = np.abs(noise - np.median(noise)) < 0.03
    assert len(require_exact(mask)) > 1


def test_interlocking_holes_are_joined_once_each():
    mask = np.ones((11, 11), bool)
    mask[2, 2:9] = mask[2:8, 2] = mask[4:10, 8] = mask[9, 4:9] = mask[5, 5] = False
    (polygon,) = require_exact(mask)
    holes = ndimage.label(~mask)[1]
    assert holes == 3
    assert area(polygon) == mask.sum() - (1 - holes) / 2


def test_one_voxel_is_a_diamond():
    mask = np.zeros((5, 4), bool)
    mask[3, 1] = True
    (polygon,) = trace_mask(mask)
    assert sorted(map(tuple, polygon)) == [(2.5, 1.0), (3.0, 0.5), (3.0, 1.5), (3.5, 1.0)]
    assert area(polygon) == 0.5


def test_straight_sides_have_no_points_between_their_ends():
    (polygon,) = trace_mask(np.ones((30, 20), bool))
    assert len(polygon) == 8
    assert area(polygon) == 30 * 20 - 0.5
    assert polygon.min(axis=0).tolist() == [-0.5, -0.5]
    assert polygon.max(axis=0).tolist() == [29.5, 19.5]


def test_nothing():
    assert trace_mask(np.zeros((4, 4), bool)) == []


def test_many_holes():
    mask = np.ones((61, 41), bool)
    mask[1:-1:2, 1:-1:2] = False
    (polygon,) = require_exact(mask)
    assert area(polygon) == mask.sum() - (1 - 600) / 2


@pytest.mark.parametrize("turn", range(4))
def test_channels_take_the_shortest_of_four_directions(turn):
    mask = np.ones((30, 21), bool)
    mask[24, 8] = mask[26, 14] = False
    (polygon,) = require_exact(np.rot90(mask, turn))
    ends = np.roll(polygon, -1, axis=0)
    # Only the ends of channels lie a quarter of a voxel off the lines of centres and sides.
    is_quarter = [(points % 0.5 != 0).any(axis=1) for points in (polygon, ends)]
    lengths = np.abs(ends - polygon).max(axis=1)[is_quarter[0] & is_quarter[1]]
    # Each channel twice, and the piece of the side between the two.
    assert sorted(lengths) == [3.25, 3.25, 5.25, 5.25, 6]
