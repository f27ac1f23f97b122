"""Separable resampling: exact positions, no aliasing, no invented labels."""

import numpy as np
import pytest

from sparseg.preprocessing.resample import (
    apply_weights,
    axis_weights,
    num_voxels,
    positions,
    resample_image,
    resample_label_map,
    resampling_weights,
)


@pytest.mark.parametrize("num_old", [1, 2, 3, 17])
@pytest.mark.parametrize("ratio", [0.31, 0.5, 1.5, 3.07, 40.0])
def test_every_row_sums_to_one_and_sits_at_its_position(num_old, ratio):
    where = positions(num_voxels(num_old, ratio), num_old, ratio)
    weights = axis_weights(where, num_old, half_width=max(1.0, ratio)).toarray()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    # The centre of gravity is the sample position: nothing moves, at the edges neither.
    np.testing.assert_allclose(weights @ np.arange(num_old), np.clip(where, 0, num_old - 1), atol=1e-4)


def test_new_grid_is_centred_and_covers_the_old_extent():
    for num_old in (1, 7, 20):
        for ratio in (0.4, 1.3, 3.0):
            where = positions(num_voxels(num_old, ratio), num_old, ratio)
            assert where[0] - ratio / 2 <= -0.5 + 1e-2
            assert where[-1] + ratio / 2 >= num_old - 0.5 - 1e-2
            np.testing.assert_allclose(where[0] + where[-1], num_old - 1, atol=1e-9)


def test_upsampling_is_linear_interpolation():
    values = np.random.default_rng(0).normal(size=6)
    where = np.array([0.0, 0.25, 2.5, 4.9, 5.0])
    expected = np.interp(where, np.arange(6), values)
    np.testing.assert_allclose(axis_weights(where, 6).toarray() @ values, expected, atol=1e-6)


def test_coarse_grid_averages_noise_instead_of_picking_it():
    noise = np.random.default_rng(1).normal(size=(1, 30, 30, 30)).astype(np.float32)
    coarse = resample_image(noise, (10, 10, 10), (3, 3, 3))
    # A triangle of half-width 3 keeps sum(w^2) = 19/81 of the variance per axis; linear picking would keep
    # all of it.
    inner = coarse[0, 1:-1, 1:-1, 1:-1]
    assert inner.std() == pytest.approx((19 / 81) ** 1.5, rel=0.15)


def test_labels_keep_their_ids_and_follow_the_larger_share():
    labels = np.zeros((12, 12, 12), np.int32)
    labels[:6] = 7
    labels[2:4, 4:9, 4:9] = 250
    fine = resample_label_map(labels, (24, 12, 18), (0.5, 1, 2 / 3))
    assert set(np.unique(fine)) == {0, 7, 250}
    assert (fine[:3, 0] == 7).all()
    assert (fine[12:] == 0).all()
    coarse = resample_label_map(labels, (6, 6, 6), (2, 2, 2))
    assert set(np.unique(coarse)) <= {0, 7, 250}
    assert (coarse[3:] == 0).all()


def test_label_result_equals_plain_share_computation():
    rng = np.random.default_rng(2)
    labels = rng.choice(np.array([-3, 0, 5], np.int32), size=(9, 8, 7))
    ids = np.unique(labels)
    shape, ratios = (6, 11, 7), (1.5, 0.75, 1)
    shares = [resample_image((labels == i)[None].astype(np.float32), shape, ratios)[0] for i in ids]
    np.testing.assert_array_equal(resample_label_map(labels, shape, ratios), ids[np.argmax(shares, axis=0)])


@pytest.mark.parametrize("ratios", [(1.8, 1.6, 1.0), (1.0, 1.3, 1.0), (1.9, 0.7, 2.4), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_and_memory_order_change_nothing(ratios, order, monkeypatch):
    array = np.random.default_rng(2).standard_normal((11, 9, 13))
    shape = tuple(num_voxels(n, r) for n, r in zip(array.shape, ratios, strict=True))
    matrices = resampling_weights(array.shape, shape, ratios)
    full = [np.eye(n) if m is None else m.toarray() for n, m in zip(array.shape, matrices, strict=True)]
    expected = np.einsum("ai,bj,ck,ijk->abc", *full, array)
    for piece in (1, 4, 100):
        monkeypatch.setattr("sparseg.preprocessing.resample._PIECE", piece)
        found = apply_weights(matrices, np.asarray(array, order=order)[::-1][::-1])
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_without_antialiasing_a_coarser_voxel_lies_between_two_old_ones():
    array = np.random.default_rng(3).standard_normal((1, 21, 5, 4)).astype(np.float32)
    found = resample_image(array, (9, 5, 4), (2.5, 1.0, 1.0), antialias=False)
    where = positions(9, 21, 2.5)
    expected = [np.interp(where, np.arange(21), line) for line in array[0].reshape(21, -1).T]
    np.testing.assert_allclose(found[0].reshape(9, -1), np.array(expected).T, atol=1e-6)
    assert np.abs(found - resample_image(array, (9, 5, 4), (2.5, 1.0, 1.0))).max() > 0.5
