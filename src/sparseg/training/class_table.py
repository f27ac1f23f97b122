"""Which case has how much of which class: looked up once, so that choosing a class opens no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class ClassTable:
    """Voxels per class (background left out) of each case.

    Attributes:
        counts: One mapping class -> voxels per case; only classes the case has.
        median_sizes: Class -> median of its voxels over the cases that have it.
    """

    counts: tuple[Mapping[int, int], ...]
    median_sizes: Mapping[int, float]

    def shares(self, case: int | None, classes: Literal["equal", "frequency", "small_first"]) -> Shares:
        """Probability of each class: of one case by its number, or of all cases together (None)."""
        counts = self.totals() if case is None else self.counts[case]
        if classes == "equal":
            return _normalised(dict.fromkeys(counts, 1.0))
        if classes == "frequency":
            return _normalised(counts)
        return _normalised({value: self.median_sizes[value] ** -0.5 for value in counts})

    def totals(self) -> dict[int, int]:
        """Voxels per class over all cases, classes ascending."""
        return {
            value: sum(counts.get(value, 0) for counts in self.counts) for value in sorted(self.median_sizes)
        }

    def cases_with(self, value: int) -> list[int]:
        """Numbers of the cases that have a class, ascending."""
        return [number for number, counts in enumerate(self.counts) if value in counts]


Shares = Mapping[int, float]


def make_class_table(cases: Sequence[Any]) -> ClassTable:
    """Look up the classes of prepared cases.

    Args:
        cases: Each with `class_counts`, or `record.class_counts` as in the cache, or else `locations`, whose
            lengths are taken for sizes.
    """
    counts = tuple(_counts(case) for case in cases)
    sizes: dict[int, list[int]] = {}
    for one in counts:
        for value, number in one.items():
            sizes.setdefault(value, []).append(number)
    return ClassTable(counts, {value: float(median(sizes[value])) for value in sorted(sizes)})


def choose(shares: Shares, rng: np.random.Generator) -> int:
    """Draw a class."""
    return int(rng.choice(list(shares), p=list(shares.values())))


def _counts(case: Any) -> dict[int, int]:
    found = getattr(case, "class_counts", None)
    if found is None:
        found = getattr(getattr(case, "record", None), "class_counts", None)
    if found is None:
        found = {value: len(positions) for value, positions in case.locations.items()}
    return {int(value): int(number) for value, number in sorted(found.items()) if value and number}


def _normalised(weights: Mapping[int, float]) -> Shares:
    total = sum(weights.values())
    return {value: weight / total for value, weight in weights.items()}
