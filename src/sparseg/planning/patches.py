"""Which patches of a case hold something: what the keep ratio is chosen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.load import load_case, load_labels
from sparseg.datasets.parallel import map_items
from sparseg.errors import DatasetError
from sparseg.planning.grid import prepared_shape
from sparseg.preprocessing.config import PreprocessConfig
from sparseg.preprocessing.orientation import ras_axes, reorient
from sparseg.preprocessing.pipeline import SAME_SPACING
from sparseg.preprocessing.resample import num_voxels, positions
from sparseg.shapes import Triple
from sparseg.volumes.geometry import spacing_of
from sparseg.volumes.io import SUFFIXES, read_labels
from sparseg.volumes.volume import Volume


@dataclass(frozen=True)
class PatchFacts:
    """Patches of one case on the model grid.

    Attributes:
        num_patches: Patches of the volume cropped to its foreground.
        foreground: Share of them with any labelled voxel.
        boundary: Share of them with more than one id.
        per_class: Id -> number of patches that hold it; ids present only. At least 1 for an id that sampling
            missed.
    """

    num_patches: int
    foreground: float
    boundary: float
    per_class: dict[int, int]


def measure_patches(
    dataset: Dataset,
    cases: Sequence[Case],
    facts: Sequence[CaseFacts],
    settings: PreprocessConfig,
    patch: Triple,
    *,
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> list[PatchFacts]:
    """Measure the labels of all cases, in order.

    Args:
        dataset: What the cases belong to.
        cases: Labelled cases.
        facts: Their facts, in the same order.
        settings: Preprocessing; decides spacing and crop.
        patch: Patch edges in voxels.
        workers: Processes; None takes all processors.
        on_case: Called with a case's name when it is done.

    Raises:
        SparsegError: a label file that cannot be read.
    """
    bare = replace(dataset, training=(), test=(), problems=())
    return map_items(
        partial(_measure_case, dataset=bare, settings=settings, patch=patch),
        list(zip(cases, facts, strict=True)),
        workers=workers,
        on_done=lambda number: on_case(cases[number].name),
    )


def count_patches(labels: np.ndarray, patch: Triple) -> tuple[int, int, dict[int, int]]:
    """Count patches with labelled voxels, patches with more than one id, and patches per id above 0.

    Args:
        labels: `[H,W,D]` ids; padded with 0 behind to multiples of the patch.
        patch: Patch edges in voxels.
    """
    labels = _labelled_part(labels, patch)
    if not labels.size:
        return 0, 0, {}
    gaps = [(0, -edge % p) for edge, p in zip(labels.shape, patch, strict=True)]
    padded = np.pad(labels, gaps)
    grid = [edge // p for edge, p in zip(padded.shape, patch, strict=True)]
    blocks = padded.reshape(grid[0], patch[0], grid[1], patch[1], grid[2], patch[2])
    # One row per patch.
    rows = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(prod(grid), prod(patch))
    highest, lowest = rows.max(axis=1), rows.min(axis=1)
    numbers, voxels = np.nonzero(rows)
    base = int(highest.max()) + 1
    pairs = np.unique(numbers.astype(np.int64) * base + rows[numbers, voxels])
    ids, counts = np.unique(pairs % base, return_counts=True)
    per_class = {int(i): int(n) for i, n in zip(ids, counts, strict=True)}
    return int((highest > 0).sum()), int((highest != lowest).sum()), per_class


def _labelled_part(labels: np.ndarray, patch: Triple) -> np.ndarray:
    """The box around all labelled voxels, on the borders of the patch grid."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hits = np.flatnonzero(labels.any(axis=others))
        start, stop = (int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, 0)
        # To the end of the last patch: what it holds besides labels makes a boundary too.
        box.append(slice(start - start % patch[axis], stop + -stop % patch[axis]))
    return labels[tuple(box)]


def sample_labels(labels: Volume, settings: PreprocessConfig) -> np.ndarray:
    """Nearest sampling of `[1,H0,W0,D0]` ids on the model grid of the uncropped image; returns `[H,W,D]`."""
    permutation, flips = ras_axes(labels.affine)
    array: np.ndarray = reorient(labels.array, permutation, flips)[0]
    if settings.spacing is None:
        return array
    stored = spacing_of(labels.affine)
    for axis in range(3):
        ratio = settings.spacing[axis] / float(stored[permutation[axis]])
        if abs(ratio - 1) > SAME_SPACING:
            num_old = array.shape[axis]
            where = np.rint(positions(num_voxels(num_old, ratio), num_old, ratio)).clip(0, num_old - 1)
            array = np.take(array, where.astype(np.int64), axis=axis)
    return array


def _measure_case(
    item: tuple[Case, CaseFacts], *, dataset: Dataset, settings: PreprocessConfig, patch: Triple
) -> PatchFacts:
    case, facts = item
    sampled = sample_labels(_read_labels(case, dataset), settings)
    foreground, boundary, per_class = count_patches(sampled, patch)
    edges = zip(prepared_shape(facts, settings), patch, strict=True)
    total = prod(-(-edge // p) for edge, p in edges)
    present = {i: per_class.get(i, 1) for i, n in (facts.label_counts or {}).items() if i and n}
    return PatchFacts(total, min(1.0, foreground / total), min(1.0, boundary / total), present)


def _read_labels(case: Case, dataset: Dataset) -> Volume:
    """Labels without the image where their format carries a grid of its own."""
    if case.label is not None and case.label.name.lower().endswith(SUFFIXES):
        return read_labels(case.label)
    if case.label is None and case.masks:
        merged = load_labels(case, dataset, read_labels(case.masks[0][1]))
    else:
        _, merged = load_case(case, dataset)
    if merged is None:
        raise DatasetError(
            "a training case must have a label",
            received=case.name,
            where=case.image,
            remedy="add its label file",
            code="label-missing",
        )
    return merged
