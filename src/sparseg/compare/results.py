"""All numbers of a comparison in one mapping, made from runs, scores and speeds; nothing is filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from sparseg.compare.bootstrap import paired_difference, verdict
from sparseg.compare.cases import Cases
from sparseg.compare.kept import shares
from sparseg.compare.plan import Comparison, Run
from sparseg.compare.scores import RunScores
from sparseg.compare.speed import FILE_TO_FILE, MODES, ratio
from sparseg.compare.train import RunState, read_state
from sparseg.metrics.scores import METRICS, average, deviation, summary_of

SCHEMA = 1
# Case, fold and seed; and the values of its structures by name.
_Key = tuple[str, int, int]
_Values = dict[_Key, dict[str, float]]


def make_results(
    found: Comparison,
    cases: Cases,
    scored: Mapping[Run, RunScores],
    speeds: Mapping[str, Any],
    *,
    tolerance_mm: float = 2.0,
) -> dict[str, Any]:
    """Put everything together; None stands for "not measured" or "not defined".

    Args:
        found: The comparison.
        cases: Its dataset.
        scored: From `score_runs`.
        speeds: From `measure_speeds` or `read_speeds`; `error` tells why nothing could be measured now.
        tolerance_mm: That of the scores.

    Returns:
        `rows`: one per variant, with the state of its runs, `quality` (mean and standard deviation over
        runs of the mean over cases of each case's mean over its structures), `classes`, `kept` and speeds.
        `comparisons`: paired differences with intervals and a sentence each, those of HD95 over the
        structures of a case that both models found. See docs/how-to/compare.md.
    """
    plan = found.plan
    return {
        "schema": SCHEMA,
        "dataset": plan.dataset,
        "budget": plan.budget.model_dump(),
        "seeds": list(plan.seeds),
        "folds": list(plan.folds),
        "reference": plan.reference,
        "scored_on": cases.source,
        "num_cases": len({case.name for fold in plan.folds for case, _ in cases.scored(found.splits, fold)}),
        "tolerance_mm": tolerance_mm,
        "left_out": plan.left_out,
        "versions": {name: version(name) for name in ("sparseg", "torch", "monai")},
        "speed": {
            key: speeds.get(key)
            for key in ("machine", "date", "commit", "device", "rounds", "warmup", "error")
        },
        "rows": [_row(found, name, scored, speeds) for name in plan.variants],
        "comparisons": [
            _comparison(one, other, metric, scored) for one, other in plan.pairs for metric in METRICS
        ],
        "cases": [_case_row(run, one) for run, scores in scored.items() for one in scores.cases],
    }


def case_mean(rows: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Mean of a metric over the structures of a case where it is defined."""
    return average(row[metric] for row in rows if row[metric] is not None)


def _row(
    found: Comparison, name: str, scored: Mapping[Run, RunScores], speeds: Mapping[str, Any]
) -> dict[str, Any]:
    states = [read_state(found, run) for run in found.runs if run.variant == name]
    own = {run: scores for run, scores in scored.items() if run.variant == name}
    rows = speeds.get("variants", {})
    runs = [_run(state, own.get(state.run)) for state in states]
    return {
        "variant": name,
        "complete": all(run["finished"] for run in runs),
        "runs": runs,
        "quality": _quality(own.values()),
        "classes": _classes(own.values()),
        "kept": shares([counts for scores in own.values() for counts in scores.kept]),
        **_speed(rows.get(name), rows.get(found.plan.reference)),
    }


def _run(state: RunState, scores: RunScores | None) -> dict[str, Any]:
    means = {key: None if scores is None else _run_mean(scores, key) for key in METRICS}
    errors = [] if scores is None else [one for one in scores.cases if one.error is not None]
    broken = None if scores is None else scores.error
    return {
        "fold": state.run.fold,
        "seed": state.run.seed,
        "finished": state.finished and broken is None,
        "state": state.describe() if broken is None else f"cannot be scored: {broken}",
        "steps": state.step,
        "minutes": round(state.minutes, 3),
        **means,
        "failed_cases": [{"case": one.case, "message": str(one.error)} for one in errors],
    }


def _run_mean(scores: RunScores, metric: str) -> float | None:
    means = (case_mean(one.rows, metric) for one in scores.cases)
    return average(mean for mean in means if mean is not None)


def _quality(runs: Any) -> dict[str, Any]:
    """Mean over runs, standard deviation over runs, and number of runs with a value, of each metric."""
    quality: dict[str, Any] = {}
    for key in METRICS:
        means = [mean for scores in runs if (mean := _run_mean(scores, key)) is not None]
        quality |= {key: average(means), f"{key}_sd": deviation(means), f"{key}_runs": len(means)}
    return quality


def _classes(runs: Any) -> list[dict[str, Any]]:
    """Per structure the means over all cases of all runs, and over runs the deviation of the Dice."""
    listed = list(runs)
    names = dict.fromkeys(row["name"] for scores in listed for one in scores.cases for row in one.rows)
    found = []
    for name in names:
        by_run = [[row for one in s.cases for row in one.rows if row["name"] == name] for s in listed]
        spread = {}
        for key in METRICS:
            means = (average(row[key] for row in rows if row[key] is not None) for rows in by_run)
            spread[f"{key}_sd"] = deviation(mean for mean in means if mean is not None)
        found.append({"name": name, **summary_of([row for rows in by_run for row in rows]), **spread})
    return found


def _speed(own: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> dict[str, Any]:
    """Sizes and speeds of a row, per mode with throughput and the ratio to the reference."""
    if own is None:
        return dict.fromkeys((*MODES, FILE_TO_FILE, "params", "token_counts"))
    found = {key: value for key, value in own.items() if key not in (*MODES, FILE_TO_FILE)}
    for mode in (*MODES, FILE_TO_FILE):
        measured = own.get(mode)
        if measured is None:
            found[mode] = None
            continue
        base = (reference or {}).get(mode)
        found[mode] = {
            **measured,
            "per_second": measured.get("batch", 1) / measured["seconds"],
            "times_reference": None if base is None else ratio(measured["seconds_all"], base["seconds_all"]),
        }
    return found


def _comparison(one: str, other: str, metric: str, scored: Mapping[Run, RunScores]) -> dict[str, Any]:
    values = {name: _structures(name, metric, scored) for name in (one, other)}
    means = _means(values[one], values[other], metric), _means(values[other], values[one], metric)
    difference = paired_difference(*means)
    text = {"verdict": verdict(one, other, difference)} if metric == "dice" else {}
    return {"variant": one, "against": other, "metric": metric, **asdict(difference), **text}


def _structures(variant: str, metric: str, scored: Mapping[Run, RunScores]) -> _Values:
    """The metric of every structure where it is defined, by case, fold and seed."""
    return {
        (case.case, run.fold, run.seed): {
            row["name"]: row[metric] for row in case.rows if row[metric] is not None
        }
        for run, scores in scored.items()
        if run.variant == variant
        for case in scores.cases
    }


def _means(own: _Values, other: _Values, metric: str) -> dict[_Key, float]:
    """Means over the structures of each case.

    A structure that a model misses has no distance, so distances are compared on what both found: a mean over
    the easy structures alone would speak for the model that misses the hard one.
    """
    means = {}
    for key, values in own.items():
        common = other.get(key, {}) if metric == "hd95_mm" else values
        mean = average(value for name, value in values.items() if name in common)
        if mean is not None:
            means[key] = mean
    return means


def _case_row(run: Run, scores: Any) -> dict[str, Any]:
    return {
        "variant": run.variant,
        "fold": run.fold,
        "seed": run.seed,
        "case": scores.case,
        "structures": list(scores.rows),
    }
