"""The results as tables of text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from sparseg.compare.speed import FILE_TO_FILE, ROUNDS
from sparseg.compare.train import NOT_STARTED
from sparseg.metrics.scores import METRICS

Row = Mapping[str, Any]
NONE = "-"
_FORMS = {"dice": "{:.4f}", "hd95_mm": "{:.2f}", "nsd": "{:.4f}"}
_PASS_KEYS = ("seconds", "p10", "p90", "per_second", "times_reference")
_HEADS = {"dice": "Dice", "hd95_mm": "HD95 mm", "nsd": "NSD"}


def quality_table(results: Row) -> list[list[str]]:
    """A head and one row per variant: state, quality, difference to the reference, patches kept."""
    reference = results["reference"]
    head = ["variant", "runs", *_HEADS.values(), f"Dice - {reference} (95 %), points", "patches kept"]
    rows = [head]
    for row in results["rows"]:
        quality = row["quality"]
        cells = [spread(quality[key], quality[f"{key}_sd"], _FORMS[key]) for key in METRICS]
        difference = difference_text(results, row["variant"], reference)
        rows.append([row["variant"], runs_text(row), *cells, difference, kept_text(row["kept"])])
    return rows


def speed_table(results: Row) -> list[list[str]]:
    """A head and one row per variant: size, arithmetic, throughput, memory."""
    head = ["variant", "tokens", "params M", "GMACs", "training crops/s", "inference windows/s"]
    rows = [[*head, "file to file s", "peak GiB training", "peak GiB inference"]]
    for row in results["rows"]:
        training, inference, whole = (row[mode] for mode in ("training", "inference", FILE_TO_FILE))
        rows.append(
            [
                row["variant"],
                tokens_text(row["token_counts"]),
                number(row["params"], "{:.1f}", 1e-6),
                number(inference and inference["macs"], "{:.4g}", 1e-9),
                throughput(training),
                throughput(inference),
                number(whole and whole["seconds"], "{:.3g}"),
                number(training and training["peak_memory_bytes"], "{:.2f}", 2**-30),
                number(inference and inference["peak_memory_bytes"], "{:.2f}", 2**-30),
            ]
        )
    return rows


def class_table(results: Row, metric: str) -> list[list[str]]:
    """A head and one row per variant: a metric of every structure, mean and spread over runs."""
    names = list(dict.fromkeys(one["name"] for row in results["rows"] for one in row["classes"]))
    rows = [[f"{_HEADS[metric]} of", *names]]
    for row in results["rows"]:
        own = {one["name"]: one for one in row["classes"]}
        cells = [
            spread(own[name][metric], own[name][f"{metric}_sd"], _FORMS[metric]) if name in own else NONE
            for name in names
        ]
        rows.append([row["variant"], *cells])
    return rows


def kept_table(results: Row) -> list[list[str]]:
    """A head and one row per variant that prunes, and stage: share of each class's patches present after."""
    groups = list(dict.fromkeys(name for row in results["rows"] for stage in row["kept"] for name in stage))
    rows = [["variant", "stage", *groups]]
    for row in results["rows"]:
        for number_, stage in enumerate(row["kept"], start=1):
            cells = [number(stage.get(name), "{:.1f} %", 100) for name in groups]
            rows.append([row["variant"], str(number_), *cells])
    return rows


def notes(results: Row) -> list[str]:
    """What the numbers rest on, and what is missing."""
    speed, plan = results["speed"], results["budget"]
    where = "test cases" if results["scored_on"] == "test" else "validation cases of the folds"
    amount = f"{plan['amount']:g} {plan['kind']}"
    lines = [
        f"Every run: {amount}, the same crops and augmentation for equal seeds; {len(results['seeds'])} "
        f"seed(s), fold(s) {', '.join(map(str, results['folds']))}. Scored is the model at the end, on "
        f"{results['num_cases']} {where}; NSD at {results['tolerance_mm']:g} mm.",
        "Mean ± standard deviation over runs (seeds and folds) of the mean over cases. Patches kept: share "
        "of the patches with a label that are present after the first and after the last pruning stage, in "
        "evaluation.",
        "Differences are paired: same case, fold and seed. Intervals come from a bootstrap over cases and "
        "seeds; with few of either they are too narrow.",
    ]
    if speed.get("machine"):
        machine = speed["machine"]
        lines.append(
            f"Speeds: {machine.get('gpu') or machine['cpu']}, {machine['threads']} threads, torch "
            f"{machine['torch']}, {speed['date']}, median of {speed['rounds']} interleaved rounds; load "
            f"before {machine['load_1min']}. Training: a step of a batch; inference: one window."
        )
        if speed["rounds"] < ROUNDS:
            lines.append(f"No ratio of speeds from fewer than {ROUNDS} rounds.")
    lines += [f"{name} left out: {reason}" for name, reason in results["left_out"].items()]
    return lines + unfinished(results)


def unfinished(results: Row) -> list[str]:
    """One line for every run or case without a result, and for speeds; runs not started are counted."""
    error = results.get("speed", {}).get("error")
    lines = [f"speeds: {error}"] if error else []
    for row in results["rows"]:
        waiting = _not_started(row)
        for run in row["runs"]:
            name = f"{row['variant']}, fold {run['fold']}, seed {run['seed']}"
            if not run["finished"] and run not in waiting:
                lines.append(f"{name}: {run['state']}")
            lines += [f"{name}: {case['case']}: {case['message']}" for case in run["failed_cases"]]
        lines += [f"{row['variant']}: {len(waiting)} of {len(row['runs'])} runs not started"] * bool(waiting)
    return lines


def verdicts(results: Row) -> list[str]:
    """The sentences of all comparisons that have a pair to compare."""
    found = [row["verdict"] for row in results["comparisons"] if "verdict" in row and row["num_pairs"]]
    return found or ["There is nothing to compare yet: no case was scored with two variants."]


def markdown(results: Row) -> str:
    """Everything as Markdown."""
    parts = [
        f"# Comparison on {results['dataset']}",
        "\n".join(f"- {line}" for line in verdicts(results)),
        *(_markdown_table(table) for table in (quality_table(results), speed_table(results))),
        *(_markdown_table(class_table(results, metric)) for metric in METRICS),
    ]
    kept = kept_table(results)
    parts += [_markdown_table(kept)] if len(kept) > 1 else []
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in notes(results))]) + "\n"


def as_csv(results: Row) -> str:
    """One line per variant with plain numbers; empty where there is none."""
    lines = [_flat_row(results, row) for row in results["rows"]]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def difference_text(results: Row, one: str, other: str, metric: str = "dice") -> str:
    """Difference with its interval in points, or "reference"."""
    if one == other:
        return "reference"
    found = find_comparison(results, one, other, metric)
    if found is None or found["mean"] is None:
        return NONE
    text = f"{100 * found['mean']:+.2f}"
    if found["low"] is None:
        return f"{text} (no interval)"
    return f"{text} ({100 * found['low']:+.2f} to {100 * found['high']:+.2f})"


def find_comparison(results: Row, one: str, other: str, metric: str = "dice") -> Row | None:
    """The comparison of two variants."""
    wanted = (one, other, metric)
    rows = results["comparisons"]
    return next((row for row in rows if (row["variant"], row["against"], row["metric"]) == wanted), None)


def runs_text(row: Row) -> str:
    """E.g. "3 of 3", or "1 of 3; fold 0 seed 1: interrupted at step 40; 1 not started"."""
    waiting = _not_started(row)
    parts = [f"{sum(run['finished'] for run in row['runs'])} of {len(row['runs'])}"]
    parts += [
        f"fold {run['fold']} seed {run['seed']}: {run['state']}"
        for run in row["runs"]
        if not run["finished"] and run not in waiting
    ]
    return "; ".join(parts + [f"{len(waiting)} not started"] * bool(waiting))


def kept_text(stages: Sequence[Mapping[str, float | None]]) -> str:
    """Share of labelled patches after the first and the last stage."""
    if not stages:
        return NONE
    ends = [number(stage["foreground"], "{:.1f} %", 100) for stage in (stages[0], stages[-1])]
    return " > ".join(ends)


def tokens_text(counts: Sequence[int] | None) -> str:
    """Token counts; of many the first, and the last."""
    if not counts:
        return NONE
    shown = [*counts[:1], "...", *counts[-1:]] if len(counts) > 5 else counts
    return " > ".join(map(str, shown))


def throughput(measured: Row | None) -> str:
    """Per second, and how many times the reference's."""
    if measured is None:
        return NONE
    times = measured["times_reference"]
    return f"{measured['per_second']:.3g}" + ("" if times is None else f" ({times:.2f}x)")


def spread(mean: float | None, deviation: float | None, form: str) -> str:
    """Mean ± deviation."""
    if mean is None:
        return NONE
    return form.format(mean) + ("" if deviation is None else f" ± {form.format(deviation)}")


def number(value: float | None, form: str, factor: float = 1) -> str:
    """A number times a factor, or a dash."""
    return NONE if value is None else form.format(value * factor)


def _not_started(row: Row) -> list[Row]:
    return [run for run in row["runs"] if run["state"] == NOT_STARTED]


def _flat_row(results: Row, row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "variant": row["variant"],
        "runs_finished": sum(run["finished"] for run in row["runs"]),
        "runs": len(row["runs"]),
        "state": "complete" if row["complete"] else runs_text(row),
        **row["quality"],
    }
    for metric in METRICS:
        found = find_comparison(results, row["variant"], results["reference"], metric) or {}
        head = f"{metric}_minus_{results['reference']}"
        line |= {head: found.get("mean"), f"{head}_low": found.get("low"), f"{head}_high": found.get("high")}
    for one in row["classes"]:
        line |= {f"{key} {one['name']}": one[key] for key in METRICS}
    for place, stage in enumerate(row["kept"], start=1):
        line |= {f"kept_{place} {name}": share for name, share in stage.items()}
    line["params"] = row["params"]
    for mode in ("training", "inference", FILE_TO_FILE):
        measured = row[mode] or {}
        keys = _PASS_KEYS if mode == FILE_TO_FILE else (*_PASS_KEYS, "batch", "macs", "peak_memory_bytes")
        line |= {f"{mode}_{key}": measured.get(key) for key in keys}
    return line


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
