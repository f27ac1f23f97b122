"""Patches that hold something, counted on tiny labels by hand and against a slow count."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from planning.tiny import SHAPE, facts_of, write_dataset
from sparseg.planning.patches import count_patches, measure_patches, sample_labels
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.preprocessing.pipeline import prepare
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

AS_STORED = PreprocessConfig(spacing=None, intensity=CTIntensity(), foreground_crop=False)


def test_by_hand() -> None:
    labels = np.zeros((4, 4, 6), np.int32)
    labels[:2, :2, :2] = 1  # fills a patch: labelled, no boundary
    labels[2:, :2, :2] = 2
    labels[2, 0, 0] = 1  # two ids without background
    labels[3, 3, 5] = 7  # one voxel
    assert count_patches(labels, (2, 2, 2)) == (3, 2, {1: 2, 2: 1, 7: 1})


def test_nothing_labelled() -> None:
    assert count_patches(np.zeros((3, 3, 3), np.int32), (2, 2, 2)) == (0, 0, {})


def test_a_patch_cut_off_by_the_edge_has_a_boundary() -> None:
    assert count_patches(np.ones((2, 2, 3), np.int32), (2, 2, 2)) == (2, 1, {1: 2})


@pytest.mark.parametrize("patch", [(4, 4, 4), (4, 8, 2), (1, 2, 16)])
def test_against_a_loop(patch: tuple[int, int, int]) -> None:
    labels = make_phantom(SHAPE, num_classes=4)[1].array[0]
    foreground = boundary = 0
    per_class: dict[int, int] = {}
    for start in product(*(range(0, edge, p) for edge, p in zip(SHAPE, patch, strict=True))):
        block = np.zeros(patch, np.int32)
        part = labels[tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))]
        block[: part.shape[0], : part.shape[1], : part.shape[2]] = part
        ids = np.unique(block)
        foreground += bool(block.any())
        boundary += len(ids) > 1
        for label_id in ids[ids > 0].tolist():
            per_class[label_id] = per_class.get(label_id, 0) + 1
    assert count_patches(labels, patch) == (foreground, boundary, per_class)


def test_sampling_lies_where_prepare_puts_the_labels() -> None:
    """Also from axes that are stored otherwise; ellipsoids differ in a few voxels of their surface."""
    image, labels = make_phantom((24, 22, 20), num_classes=3)
    turned = Volume(
        np.ascontiguousarray(labels.array.transpose(0, 3, 1, 2)[:, ::-1]), labels.affine.copy(), "turned"
    )
    turned.affine[:3, :3] = labels.affine[:3, [2, 0, 1]]
    turned.affine[:3, 3] += turned.affine[:3, 0] * (turned.shape[0] - 1)
    turned.affine[:3, 0] *= -1
    settings = AS_STORED.model_copy(update={"spacing": (1.2, 1.2, 1.2)})
    expected = prepare(image, settings, labels=labels).labels
    assert expected is not None
    found = sample_labels(turned, settings)
    assert found.shape == expected.shape
    assert (found == expected.array[0]).mean() > 0.97
    assert np.array_equal(found, sample_labels(labels, settings))


def test_shares_of_cases(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", num_cases=2)
    found = measure_patches(dataset, dataset.training, facts_of(dataset), AS_STORED, (4, 6, 4))
    seen = []
    for seed, case in enumerate(found):
        labels = make_phantom(SHAPE, num_classes=3, seed=seed)[1].array[0]
        foreground, boundary, per_class = count_patches(labels, (4, 6, 4))
        assert case.num_patches == 5 * 3 * 4
        assert case.foreground == foreground / 60
        assert case.boundary == boundary / 60
        assert case.per_class == per_class
        seen.append(case.foreground)
    assert all(0.1 < share < 0.6 for share in seen)


def test_an_id_that_sampling_missed_counts_as_one_patch(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", num_cases=1)
    facts = facts_of(dataset)
    assert facts[0].label_counts is not None
    facts[0].label_counts[9] = 1
    found = measure_patches(dataset, dataset.training, facts, AS_STORED, (4, 6, 4))
    assert found[0].per_class[9] == 1
