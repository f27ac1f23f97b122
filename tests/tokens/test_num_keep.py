"""How many tokens stay: exact in the user's decimals, and the published rule with its losses."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest

from sparseg.errors import ConfigError
from sparseg.tokens.select import num_keep

RATIOS = [Fraction(i, 100) for i in range(1, 101)] + [Fraction(1, 8), Fraction(1, 3200)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 27, 64, 100, 172, 216, 512, 1000, 1728, 4096, 10**6])
def test_exact_rule_is_the_floor_of_the_decimal(n: int) -> None:
    for ratio in RATIOS:
        assert num_keep(n, float(ratio)) == max(1, floor(ratio * n)), ratio


@pytest.mark.parametrize(
    ("n", "ratio", "expected"),
    [(100, 0.29, 29), (1000, 0.1, 100), (1000, 0.7, 700), (5, 0.1, 1), (1, 0.5, 1), (7, 1.0, 7), (7, 1, 7)],
)
def test_exact_rule_where_floating_point_slips(n: int, ratio: float, expected: int) -> None:
    assert num_keep(n, ratio) == expected


@pytest.mark.parametrize(
    ("n", "ratio", "expected"), [(1000, 1 - 0.9, 99), (100, 0.29, 28), (5, 0.1, 0), (1728, 0.1, 172)]
)
def test_published_rule_loses_tokens(n: int, ratio: float, expected: int) -> None:
    assert num_keep(n, ratio, "published") == expected


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.0001, 1.5, float("nan"), float("inf")])
def test_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(
        ConfigError, match=r"^keep_ratio: a keep ratio must be above 0 and at most 1; received"
    ):
        num_keep(10, ratio)
