"""Paired differences and their intervals, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparseg.compare.bootstrap import (
    Difference,
    bootstrap_interval,
    difference_table,
    paired_difference,
    verdict,
)


def test_two_cases_give_the_interval_from_one_to_the_other() -> None:
    """Drawn twice from {0, 1}: means 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4."""
    table = np.array([[0.0], [1.0]])
    assert bootstrap_interval(table) == (0.0, 1.0)
    # Within the middle half there is nothing but 1/2.
    assert bootstrap_interval(table, level=0.4) == (0.5, 0.5)


def test_cases_and_seeds_are_drawn_apart() -> None:
    """d_ij = a_i + b_j, so the mean is that of the cases plus that of the seeds.

    Both are 0, 1/2 or 1 with 1/4, 1/2, 1/4: the sum is 0 or 2 with 1/16 each, 1/2 or 3/2 with 4/16 each. Had
    single pairs been drawn, 0 and 2 would have come with 1/256.
    """
    table = np.array([[0.0, 1.0], [1.0, 2.0]])
    assert bootstrap_interval(table) == (0.0, 2.0)
    assert bootstrap_interval(table, level=0.8) == (0.5, 1.5)
    # 1/16 lies between the two levels' tails of 5 % and 7.5 %.
    assert bootstrap_interval(table, level=0.9) == (0.0, 2.0)
    assert bootstrap_interval(table, level=0.85) == (0.5, 1.5)


def test_many_cases_give_the_interval_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(4)
    table = rng.normal(0.3, 1.0, (400, 1))
    low, high = bootstrap_interval(table)
    error = table.std() / 20
    assert low == pytest.approx(table.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(table.mean() + 1.96 * error, abs=0.1 * error)
    assert bootstrap_interval(table) == (low, high)
    assert bootstrap_interval(table, seed=1) != (low, high)


def test_missing_pairs_do_not_count() -> None:
    table = np.array([[0.2, np.nan], [0.2, 0.2], [np.nan, 0.2]])
    assert bootstrap_interval(table) == pytest.approx((0.2, 0.2))
    assert bootstrap_interval(np.array([[0.2]])) == (None, None)


def test_only_pairs_of_one_case_fold_and_seed_are_compared() -> None:
    one = {("a", 0, 0): 0.9, ("a", 1, 0): 0.7, ("b", 0, 0): 0.5, ("b", 0, 1): 0.4, ("c", 0, 0): 1.0}
    other = {("a", 0, 0): 0.8, ("a", 1, 0): 0.8, ("b", 0, 0): 0.2, ("b", 0, 1): 0.0, ("a", 0, 1): 0.1}
    # Of case a the mean over its folds, (0.1 - 0.1) / 2.
    np.testing.assert_allclose(difference_table(one, other), [[0.0, np.nan], [0.3, 0.4]], atol=1e-12)
    found = paired_difference(one, other)
    assert found.mean == pytest.approx(0.7 / 3)
    assert (found.num_pairs, found.num_cases, found.num_seeds) == (3, 2, 2)
    assert paired_difference(one, {}) == Difference(None, None, None, 0, 0, 0)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (
            (0.021, 0.005, 0.034, 60, 20, 3),
            "a is higher than b by 2.10 points of Dice (95 % interval +0.50 to",
        ),
        (
            (-0.021, -0.034, -0.005, 60, 20, 3),
            "a is lower than b by 2.10 points of Dice (95 % interval -3.40 to",
        ),
        (
            (0.001, -0.012, 0.008, 60, 20, 3),
            "a against b: no difference seen (95 % interval -1.20 to +0.80 points).",
        ),
        ((0.02, 0.01, 0.03, 3, 1, 3), "one case, so this says nothing of other cases"),
        ((0.02, 0.01, 0.03, 20, 20, 1), "one seed, so another training may say otherwise"),
        ((0.02, 0.01, 0.03, 8, 4, 2), "from 4 cases and 2 seeds the interval is too narrow"),
        ((0.02, None, None, 1, 1, 1), "on one case and one seed: this says nothing"),
        ((None, None, None, 0, 0, 0), "cannot be compared: no case that both were scored on"),
    ],
)
def test_verdicts_say_what_the_interval_says(numbers: tuple, text: str) -> None:
    found = verdict("a", "b", Difference(*numbers))
    assert text in found
    assert found.endswith(".")
