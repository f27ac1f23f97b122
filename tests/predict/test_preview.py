"""Previews lie where their originals lie, in millimetres, and show their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparseg.predict.preview import (
    confidence_preview,
    image_preview,
    label_preview,
    thin_out,
    token_preview,
    write_previews,
)
from sparseg.volumes.io import read_volume
from sparseg.volumes.volume import Volume

OBLIQUE = np.array([[0.9, -0.3, 0.0, 10.0], [0.3, 0.9, 0.0, -20.0], [0.0, 0.0, 2.0, 5.0], [0, 0, 0, 1]])


def world(affine: np.ndarray, index: tuple[float, float, float]) -> np.ndarray:
    return (affine @ [*index, 1.0])[:3]


def test_thinned_voxels_keep_their_place() -> None:
    array = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    small, affine = thin_out(array, OBLIQUE, (2, 3, 1))
    assert small[1, 1, 4] == array[2, 3, 4]
    np.testing.assert_allclose(world(affine, (1, 1, 4)), world(OBLIQUE, (2, 3, 4)))


def test_image_and_labels_are_thinned_alike() -> None:
    array = np.zeros((1, 400, 10, 8), np.float32)
    array[0, 300:] = 100
    image = image_preview(Volume(array, OBLIQUE), (0.0, 100.0))
    labels = label_preview((array[0] > 0).astype(np.uint8) * 2, OBLIQUE)
    np.testing.assert_array_equal(image.array > 0, labels.array > 0)
    np.testing.assert_array_equal(image.affine, labels.affine)
    assert image.array.max() == 255
    assert set(np.unique(labels.array)) == {0, 2}


def test_a_constant_image_is_black_not_a_fault() -> None:
    assert image_preview(Volume(np.full((1, 4, 4, 4), 7.0, np.float32), np.eye(4))).array.max() == 0


def test_a_cell_lies_in_the_middle_of_its_patch() -> None:
    preview = token_preview(np.zeros((2, 2, 2), np.uint8), OBLIQUE, (8, 4, 2))
    np.testing.assert_allclose(world(preview.affine, (1, 1, 1)), world(OBLIQUE, (11.5, 5.5, 2.5)))


@pytest.mark.parametrize(
    ("logits", "regions", "expected"),
    [
        ([0.0, 0.0], False, 0.5),
        ([3.0, 0.0], False, 0.9526),
        ([0.0, 9.0], True, 0.5),
        ([-4.0, 4.0], True, 0.982),
    ],
)
def test_confidence_is_that_of_the_decision(logits: list[float], regions: bool, expected: float) -> None:
    values = torch.tensor(logits).reshape(-1, 1, 1, 1).expand(-1, 2, 2, 2)
    preview = confidence_preview(values, OBLIQUE, regions=regions)
    np.testing.assert_allclose(preview.array / 255, expected, atol=0.003)


def test_written_previews_read_back(tmp_path: Path) -> None:
    preview = label_preview(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), OBLIQUE)
    assert write_previews(tmp_path / "x", {"labels": preview}) == {"labels": "labels.nii.gz"}
    again = read_volume(tmp_path / "x" / "labels.nii.gz")
    np.testing.assert_array_equal(again.array[0], preview.array)
    np.testing.assert_allclose(again.affine, OBLIQUE, atol=1e-5)
    assert write_previews(tmp_path / "none", {}) == {}
    assert not (tmp_path / "none").exists()
