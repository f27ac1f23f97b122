"""One table of a cross-validation: means and spread over cases, per structure and per fold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from sparseg.checkpoints.folder import read_card
from sparseg.crossval.collect import CaseScores, out_of_fold
from sparseg.crossval.folder import CrossValidation
from sparseg.crossval.status import read_status
from sparseg.datasets.dataset import Dataset
from sparseg.metrics.scores import METRICS, average, deviation, mean_of, summary_of
from sparseg.training.state import read_progress
from sparseg.volumes.atomic import write_bytes_atomically

JSON, TEXT = "summary.json", "summary.md"
_HEADS = {"dice": ("Dice", "{:.4f}"), "hd95_mm": ("HD95 mm", "{:.2f}"), "nsd": ("NSD", "{:.4f}")}


def summarise(
    found: CrossValidation, dataset: Dataset, scored: Sequence[CaseScores], *, tolerance_mm: float = 2.0
) -> dict[str, Any]:
    """All numbers of a cross-validation; None stands for "not defined".

    Returns:
        `structures`: per structure the mean, standard deviation (`*_sd`, over cases, n - 1) and number of
        defined values of each metric, and `*_with_empty`, where a structure absent from prediction and
        reference counts as 1. `mean`: the mean over structures; its `*_sd` is that over cases of each case's
        mean over its structures. `folds`: the same per fold, with its model. `fold_spread`: mean and standard
        deviation of the folds' means. `cases`: every number.
    """
    good = [scores for scores in scored if scores.error is None]
    predicted = {name for names in out_of_fold(found).values() for name in names}
    return {
        "schema": 1,
        "dataset": dataset.name,
        "num_cases": len(good),
        "num_folds": len(found.folds),
        "tolerance_mm": tolerance_mm,
        "labels": {str(number): name for number, name in dataset.labels.items()},
        "regions": {name: list(ids) for name, ids in dataset.regions.items()},
        "seeds": {"training": found.config.seed, "folds": found.splits.seed},
        "versions": {name: version(name) for name in ("sparseg", "torch", "monai")},
        "validates_on_training": any(
            set(found.splits.train(fold)) & set(found.splits.val(fold)) for fold in found.folds
        ),
        **_numbers(good),
        "fold_spread": _fold_spread(found, good),
        "folds": [_fold(found, fold, good) for fold in found.folds],
        "cases": [{"case": one.case, "fold": one.fold, "structures": list(one.rows)} for one in good],
        "not_predicted": sorted(found.splits.names - predicted),
        "failed": [
            {"case": one.case, "fold": one.fold, "code": one.error.code, "message": str(one.error)}
            for one in scored
            if one.error is not None
        ],
    }


def write_summary(found: CrossValidation, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` (strict: no NaN) and `summary.md`, each whole or not at all."""
    content = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes_atomically(found.folder / JSON, content.encode())
    write_bytes_atomically(found.folder / TEXT, summary_text(summary).encode())


def table(summary: Mapping[str, Any]) -> list[list[str]]:
    """A head, one row per structure, the mean over structures, one row per fold; mean ± deviation."""
    rows = [["", "cases", *(head for head, _ in _HEADS.values()), "Dice with empty"]]
    for row in summary["structures"]:
        rows.append([row["name"], str(row["dice_count"]), *_cells(row)])
    rows.append(["mean", str(summary["num_cases"]), *_cells(summary["mean"])])
    for fold in summary["folds"]:
        rows.append([f"fold {fold['fold']}", str(len(fold["cases"])), *_cells(fold["mean"])])
    return rows


def summary_text(summary: Mapping[str, Any]) -> str:
    """The table and what it rests on, as Markdown."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table(summary)]
    lines = [
        f"# Cross-validation of {summary['dataset']}",
        "",
        f"{summary['num_cases']} cases in {summary['num_folds']} folds, each segmented by the model that did "
        f"not see it. Mean ± standard deviation over cases; NSD at {summary['tolerance_mm']:g} mm.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        'A structure absent from both prediction and reference is left out, and counted as 1 in "Dice with '
        'empty"; one that is missed, or predicted where there is none, has Dice 0, NSD 0 and no HD95.',
    ]
    spread = summary["fold_spread"]["dice"]
    if spread["sd"] is not None:
        lines.append(f"Mean Dice of the folds: {spread['mean']:.4f} ± {spread['sd']:.4f} over folds.")
    if summary["validates_on_training"]:
        lines.append("**Training and validation share cases: these numbers say nothing about others.**")
    if summary["not_predicted"]:
        lines.append(
            f"Cases that train in every fold and have no prediction: {len(summary['not_predicted'])}."
        )
    if summary["failed"]:
        lines += ["", "## Failed", "", *(f"- {row['case']}: {row['message']}" for row in summary["failed"])]
    return "\n".join(lines) + "\n"


def _numbers(scored: Sequence[CaseScores]) -> dict[str, Any]:
    """`structures` and `mean` of some cases."""
    names = list(dict.fromkeys(row["name"] for one in scored for row in one.rows))
    structures = []
    for name in names:
        rows = [row for one in scored for row in one.rows if row["name"] == name]
        spread = {f"{key}_sd": deviation(row[key] for row in rows if row[key] is not None) for key in METRICS}
        structures.append({"name": name, **summary_of(rows), **spread})
    return {"structures": structures, "mean": {**mean_of(structures), **_spread_over_cases(scored)}}


def _spread_over_cases(scored: Sequence[CaseScores]) -> dict[str, float | None]:
    spread = {}
    for key in METRICS:
        means = [average(row[key] for row in one.rows if row[key] is not None) for one in scored]
        spread[f"{key}_sd"] = deviation(mean for mean in means if mean is not None)
    return spread


def _fold(found: CrossValidation, fold: int, scored: Sequence[CaseScores]) -> dict[str, Any]:
    own = [one for one in scored if one.fold == fold]
    card, progress = read_card(found.run(fold)), read_progress(found.run(fold))
    return {
        "fold": fold,
        "num_training": len(found.splits.train(fold)),
        "cases": [one.case for one in own],
        "finished": read_status(found.run(fold), fold).finished,
        "steps": progress.step if progress else None,
        "minutes": round(progress.minutes, 2) if progress else None,
        "model": {
            "weights_sha256": card.weights_sha256,
            "step": card.provenance.steps,
            "seed": card.provenance.seed,
            "validation_dice": card.provenance.validation_dice,
        },
        **_numbers(own),
    }


def _fold_spread(found: CrossValidation, scored: Sequence[CaseScores]) -> dict[str, Any]:
    means = [_numbers([one for one in scored if one.fold == fold])["mean"] for fold in found.folds]
    spread = {}
    for key in METRICS:
        values = [mean[key] for mean in means if mean[key] is not None]
        spread[key] = {"mean": average(values), "sd": deviation(values)}
    return spread


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for key, (_, form) in _HEADS.items():
        text = "-" if row[key] is None else form.format(row[key])
        spread = row.get(f"{key}_sd")
        cells.append(text if spread is None else f"{text} ± {form.format(spread)}")
    with_empty = row["dice_with_empty"]
    return [*cells, "-" if with_empty is None else f"{with_empty:.4f}"]
