"""Splits are seeded, complete and disjoint."""

import logging
from pathlib import Path

import pytest

from sparseg.datasets.dataset import Case
from sparseg.datasets.splits import split_cases
from sparseg.errors import ConfigError, DatasetError

CASES = [Case(f"c{i:02}", (Path(f"c{i:02}.nii.gz"),)) for i in range(30)]


def test_partition_depends_on_names_and_seed_only():
    train, val = split_cases(CASES, val_fraction=0.4, seed=3)
    assert (len(train), len(val)) == (18, 12)
    assert sorted((*train, *val), key=lambda c: c.name) == CASES
    assert split_cases(CASES[::-1], val_fraction=0.4, seed=3) == (train, val)
    assert split_cases(CASES, val_fraction=0.4, seed=4) != (train, val)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_neither_side_is_empty(fraction):
    train, val = split_cases(CASES[:2], val_fraction=fraction, seed=0)
    assert (len(train), len(val)) == (1, 1)


def test_one_case_serves_both_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="sparseg"):
        assert split_cases(CASES[:1], seed=0) == ((CASES[0],), (CASES[0],))
    assert "one case only (c00)" in caplog.text


def test_refusals():
    with pytest.raises(DatasetError):
        split_cases([], seed=0)
    with pytest.raises(ConfigError, match="val_fraction"):
        split_cases(CASES, val_fraction=1.0, seed=0)
