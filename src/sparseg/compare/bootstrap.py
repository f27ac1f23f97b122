"""Paired differences of two models and how sure they are: a bootstrap over cases and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
LEVEL = 0.95
_FEW_CASES, _FEW_SEEDS = 10, 3
# (case, fold, seed) -> value of a metric.
Values = Mapping[tuple[str, int, int], float]


@dataclass(frozen=True)
class Difference:
    """Mean difference of two models on the same cases, folds and seeds.

    Attributes:
        mean: Of all pairs; None without any.
        low: Lower end of the 95 % interval; None where one case and one seed allow none.
        high: Upper end.
        num_pairs: Pairs.
        num_cases: Different cases in them.
        num_seeds: Different seeds in them.
    """

    mean: float | None
    low: float | None
    high: float | None
    num_pairs: int
    num_cases: int
    num_seeds: int


def paired_difference(one: Values, other: Values, *, seed: int = 0) -> Difference:
    """Difference one - other over what both have.

    Args:
        one: Values of a model.
        other: Values of the model it is compared with.
        seed: Of the resampling.
    """
    table = difference_table(one, other)
    num_pairs = int(np.isfinite(table).sum())
    if not num_pairs:
        return Difference(None, None, None, 0, 0, 0)
    low, high = bootstrap_interval(table, seed=seed)
    return Difference(float(np.nanmean(table)), low, high, num_pairs, len(table), table.shape[1])


def difference_table(one: Values, other: Values) -> np.ndarray:
    """Differences `[cases, seeds]`, NaN where a pair is missing; of several folds of a case the mean."""
    pairs: dict[tuple[str, int], list[float]] = {}
    for case, fold, seed in sorted(one.keys() & other.keys()):
        pairs.setdefault((case, seed), []).append(one[case, fold, seed] - other[case, fold, seed])
    cases = sorted({case for case, _ in pairs})
    seeds = sorted({seed for _, seed in pairs})
    table = np.full((len(cases), len(seeds)), np.nan)
    for (case, seed), values in pairs.items():
        table[cases.index(case), seeds.index(seed)] = np.mean(values)
    return table


def bootstrap_interval(
    table: np.ndarray, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
) -> tuple[float, float] | tuple[None, None]:
    """Percentile interval of the mean, cases and seeds drawn anew with replacement, each on its own.

    The two are crossed (every seed meets every case), so both are resampled as in the "pigeonhole" bootstrap
    (Owen, Annals of Applied Statistics 2007): the product of how often its case and its seed were drawn
    weighs a pair.

    Args:
        table: `[cases, seeds]`, NaN where a pair is missing.
        seed: Of the resampling.
        num_resamples: Resamples.
        level: Share of them inside.

    Returns:
        Lower and upper end; None and None for one case and one seed, which nothing can be drawn from.
    """
    num_cases, num_seeds = table.shape
    if num_cases * num_seeds < 2:
        return None, None
    known = np.isfinite(table)
    values = np.where(known, table, 0.0)
    rng = np.random.default_rng(seed)
    by_case = rng.multinomial(num_cases, np.full(num_cases, 1 / num_cases), num_resamples)
    by_seed = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)
    sums = ((by_case @ values) * by_seed).sum(axis=1)
    counts = ((by_case @ known) * by_seed).sum(axis=1)
    means = sums[counts > 0] / counts[counts > 0]
    # An end is a mean that was drawn, never one in between.
    low = np.quantile(means, (1 - level) / 2, method="inverted_cdf")
    high = np.quantile(means, (1 + level) / 2, method="inverted_cdf")
    return float(low), float(high)


def verdict(one: str, other: str, difference: Difference) -> str:
    """What the interval of a difference of Dice says, in plain words and points of 100."""
    if difference.mean is None:
        return f"{one} and {other} cannot be compared: no case that both were scored on."
    mean = 100 * difference.mean
    if difference.low is None or difference.high is None:
        return f"{one} {mean:+.2f} points against {other}, on one case and one seed: this says nothing."
    low, high = 100 * difference.low, 100 * difference.high
    interval = f"95 % interval {low:+.2f} to {high:+.2f} points"
    if low > 0 or high < 0:
        word = "higher" if low > 0 else "lower"
        text = f"{one} is {word} than {other} by {abs(mean):.2f} points of Dice ({interval})"
    else:
        text = f"{one} against {other}: no difference seen ({interval})"
    return f"{text}{_reach(difference)}."


def _reach(difference: Difference) -> str:
    """What an interval from few cases or seeds does not cover."""
    cases, seeds = difference.num_cases, difference.num_seeds
    if cases == 1:
        return "; one case, so this says nothing of other cases"
    if seeds == 1:
        return "; one seed, so another training may say otherwise"
    few = cases < _FEW_CASES or seeds < _FEW_SEEDS
    return f"; from {cases} cases and {seeds} seeds the interval is too narrow" if few else ""
