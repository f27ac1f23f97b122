"""The cases of a comparison: those that train and validate, and labelled test cases that no run sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.duplicates import require_no_leak
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.read import read_dataset
from sparseg.datasets.splits import Splits
from sparseg.datasets.survey import require_usable, survey
from sparseg.training.data import open_dataset


@dataclass(frozen=True)
class Cases:
    """A dataset that was read and measured.

    Attributes:
        dataset: Without its test cases.
        facts: One per training case.
        test: Test cases that have labels.
        test_facts: One per such case.
    """

    dataset: Dataset
    facts: Sequence[CaseFacts]
    test: tuple[Case, ...]
    test_facts: Sequence[CaseFacts]

    @property
    def source(self) -> str:
        """What is scored: `test` cases where any have labels, else the `validation` cases of each fold."""
        return "test" if self.test else "validation"

    def scored(self, splits: Splits, fold: int) -> list[tuple[Case, CaseFacts]]:
        """The cases that the runs of a fold are scored on, by name."""
        if self.test:
            pairs = list(zip(self.test, self.test_facts, strict=True))
        else:
            names = set(splits.val(fold))
            training = zip(self.dataset.training, self.facts, strict=True)
            pairs = [(case, fact) for case, fact in training if case.name in names]
        return sorted(pairs, key=lambda pair: pair[0].name)


def open_cases(
    path: Path, *, skip_bad: bool = False, on_case: Callable[[str], None] = lambda _: None
) -> Cases:
    """Read and measure a dataset with its labelled test cases.

    Args:
        path: Dataset folder or list.
        skip_bad: Leave out training cases that cannot be used instead of refusing the dataset.
        on_case: Called with a case's name when it was read.

    Raises:
        DatasetError: see `open_dataset`; a test case that cannot be used, or that is a training case too.
    """
    dataset, facts = open_dataset(path, skip_bad=skip_bad, on_case=on_case)
    test = tuple(case for case in read_dataset(path, strict=not skip_bad).test if case.labelled)
    if not test:
        return Cases(dataset, facts, (), ())
    apart = replace(dataset, training=(), test=test)
    test_facts = require_usable(apart, survey(apart, on_case=on_case))
    pairs = [*zip(dataset.training, facts, strict=True), *zip(test, test_facts, strict=True)]
    require_no_leak(dataset.training, test, {case.name: fact.image_hash for case, fact in pairs})
    return Cases(dataset, facts, test, test_facts)
