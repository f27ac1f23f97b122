"""Clean-up of a label map on request: stray components removed, holes filled, class by class.

It runs on the original grid, so millilitres are those of the file that is written. Voxels of a class hang
together over faces, edges and corners (26-connectivity), background over faces only (6-connectivity): the
pair under which a closed wall of voxels has no leak.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import cc3d
import numpy as np

from sparseg.errors import ConfigError

ALL = "all"
_FOREGROUND: Literal[26] = 26
_BACKGROUND: Literal[6] = 6


@dataclass(frozen=True)
class Cleanup:
    """What to clean up; nothing by default.

    Attributes:
        largest_component: Names of classes of which only the largest component is kept; "all" for all.
        fill_holes: Names of classes whose holes are filled; "all" for all.
        min_ml: Components of any class below this volume are removed.
    """

    largest_component: tuple[str, ...] = ()
    fill_holes: tuple[str, ...] = ()
    min_ml: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_ml < float("inf"):
            raise ConfigError(
                "the smallest component must have a volume of 0 ml or more",
                received=self.min_ml,
                remedy="e.g. --min-ml 0.5",
                where="min_ml",
                code="cleanup-min-ml",
            )

    def __bool__(self) -> bool:
        return bool(self.largest_component or self.fill_holes or self.min_ml)

    def check_names(self, names: Mapping[int, str]) -> None:
        """Check that every class named is one of the model's.

        Raises:
            ConfigError: otherwise.
        """
        _ids(self.largest_component, names, "largest_component")
        _ids(self.fill_holes, names, "fill_holes")


@dataclass
class CleanupReport:
    """Volume that each class lost and gained, in ml; classes without a change are left out."""

    removed_ml: dict[str, float] = field(default_factory=dict)
    filled_ml: dict[str, float] = field(default_factory=dict)


def clean_labels(
    labels: np.ndarray, affine: np.ndarray, names: Mapping[int, str], cleanup: Cleanup
) -> CleanupReport:
    """Clean up a label map in place: components are removed first, then holes are filled.

    A removed component becomes background. A hole is background from which no path over faces leads to the
    outside or to the border of the grid. It is filled if one class alone bounds it, with that class; a hole
    between several classes belongs to none of them and is left.

    Args:
        labels: `[H, W, D]`, uint8 or uint16; changed.
        affine: 4x4 voxel -> mm.
        names: Names of all ids, background 0 included.
        cleanup: What to do.

    Raises:
        ConfigError: a class of another name.
    """
    box = _foreground_box(labels)
    report = CleanupReport()
    if box is None:
        return report
    voxel_ml = abs(float(np.linalg.det(np.asarray(affine)[:3, :3]))) / 1000
    largest = _ids(cleanup.largest_component, names, "largest_component")
    fillable = _ids(cleanup.fill_holes, names, "fill_holes")
    if largest or cleanup.min_ml:
        removed = remove_components(labels[box], largest, cleanup.min_ml / voxel_ml)
        report.removed_ml = _ml_by_name(removed, names, voxel_ml)
    if fillable:
        report.filled_ml = _ml_by_name(fill_holes(labels[box], fillable), names, voxel_ml)
    return report


def remove_components(labels: np.ndarray, largest: frozenset[int], min_voxels: float) -> dict[int, int]:
    """Remove components, in place.

    Args:
        labels: `[H, W, D]` ids; a view is changed where it lies.
        largest: Ids of which only the largest component stays; of equals the one that comes first.
        min_voxels: Components with fewer voxels go, whatever their id.

    Returns:
        Voxels removed by id.
    """
    components, count = cc3d.connected_components(labels, connectivity=_FOREGROUND, return_N=True)
    sizes = np.bincount(components.reshape(-1), minlength=count + 1)
    owner = np.zeros(count + 1, dtype=labels.dtype)
    owner[components.reshape(-1)] = labels.reshape(-1)  # a component has one id, whichever voxel comes last
    # Sizes come from the mm of the user: a component of exactly min_ml stays despite rounding.
    keep = sizes >= min_voxels * (1 - 1e-9)
    for label in largest:
        own = np.flatnonzero(owner == label)
        if own.size:
            keep[np.delete(own, np.argmax(sizes[own]))] = False
    keep[0] = True
    if keep.all():
        return {}
    labels[~keep[components]] = 0
    return {int(label): int(sizes[~keep & (owner == label)].sum()) for label in np.unique(owner[~keep])}


def fill_holes(labels: np.ndarray, fillable: frozenset[int]) -> dict[int, int]:
    """Fill holes that one class of `fillable` alone bounds, in place.

    Args:
        labels: `[H, W, D]` ids; background at its border counts as open.
        fillable: Ids whose holes are filled.

    Returns:
        Voxels filled by id.
    """
    holes, count = cc3d.connected_components(np.asarray(labels == 0), connectivity=_BACKGROUND, return_N=True)
    closed = np.ones(count + 1, dtype=bool)
    closed[0] = False
    for axis in range(3):
        for side in (0, -1):
            closed[np.unique(np.take(holes, side, axis=axis))] = False
    if not closed.any():
        return {}
    holes[~closed[holes]] = 0
    lowest = np.full(count + 1, np.iinfo(labels.dtype).max, dtype=labels.dtype)
    highest = np.zeros(count + 1, dtype=labels.dtype)
    for hole, wall in _faces(holes, labels):
        np.minimum.at(lowest, hole, wall)
        np.maximum.at(highest, hole, wall)
    bounded_by_one = closed & (lowest == highest) & np.isin(highest, list(fillable))
    filling = np.where(bounded_by_one, highest, 0).astype(labels.dtype)
    sizes = np.bincount(holes.reshape(-1), minlength=count + 1)
    inside = bounded_by_one[holes]
    labels[inside] = filling[holes[inside]]
    return {int(label): int(sizes[filling == label].sum()) for label in np.unique(filling[bounded_by_one])}


def _faces(holes: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (number of the hole, id beyond the face) of all faces between a hole and a class."""
    for axis in range(3):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        for inner, outer in ((low, high), (high, low)):
            at = (holes[inner] > 0) & (labels[outer] > 0)
            yield holes[inner][at], labels[outer][at]


def _foreground_box(labels: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box with all foreground and, inside the grid, one layer of background around it."""
    found = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        used = np.flatnonzero(labels.any(axis=others))
        if not used.size:
            return None
        found.append(slice(max(int(used[0]) - 1, 0), int(used[-1]) + 2))
    return (found[0], found[1], found[2])


def _ids(wanted: tuple[str, ...], names: Mapping[int, str], where: str) -> frozenset[int]:
    by_name = {name: label for label, name in names.items() if label}
    if ALL in wanted:
        return frozenset(by_name.values())
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ConfigError(
            "a class to clean up must be one of the model's",
            received=", ".join(unknown),
            remedy=f"choose from: {', '.join(by_name)}; or {ALL}",
            where=where,
            code="cleanup-unknown-class",
        )
    return frozenset(by_name[name] for name in wanted)


def _ml_by_name(voxels: Mapping[int, int], names: Mapping[int, str], voxel_ml: float) -> dict[str, float]:
    return {names[label]: round(count * voxel_ml, 3) for label, count in voxels.items()}
