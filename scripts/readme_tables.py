"""Writes the tables of figures in README.md and elsewhere from the committed rows they cite.

    python scripts/readme_tables.py           # after rows changed
    python scripts/readme_tables.py --check   # exit code 1 if a table says something else than its rows

A table stands between `<!-- table KIND FILE -->` and `<!-- /table -->`: KIND is a key of `TABLES`, FILE a
result below the root of the repository.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "models/sample_ct/README.md",
    "docs/explanation/fast.md",
    "docs/explanation/tasks.md",
)
_TABLE = re.compile(r"(<!-- table (\w+) (\S+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)
_MODELS = {
    "sparse": "sparse patch 8",
    "dense_p8": "dense patch 8, fused attention",
    "dense_p16_monai": "dense patch 16 (MONAI UNETR), fused attention",
    "naive_sparse": "sparse patch 8, explicit attention and boolean masks",
}
_STEPS = {
    "dense_p8": "dense patch 8",
    "sparse": "three stages, the paper's scores (`sparse`)",
    "image": "scores of the image (`image`)",
    "first": "one stage, before the first block, 15 % kept (`first`)",
    "linear": "no completion block (`linear`)",
    "fast": "decoder at half resolution (`fast`)",
    "dense_p8_half": "dense patch 8 with that decoder (`dense_p8_half`)",
    "dense_p16_monai": "dense patch 16 (MONAI's UNETR; of the tasks `dense_p16`)",
}
_HEADLINE = {
    "dense_p8": "dense patch 8",
    "dense_p16_monai": "dense patch 16 (MONAI's UNETR)",
    "sparse": "sparse patch 8 as in the paper, a quarter kept at each of three stages",
    "fast": "**`fast`**: sparse patch 8, 15 % kept before the first block, half-resolution decoder",
}
_TASKS = ("brain", "small", "ct")
_ROWS = {
    "sparse": "the paper's predictor, three stages",
    "scored": "the same, taught by labels",
    "published": "with the published options",
    "image": "scores by convolutions, taught by labels",
    "first": "15 % kept before the first block, by such scores",
    "linear": "`first` without completion block",
    "fast": "`linear` with the half-resolution decoder",
    "fast_elastic": "`fast` trained at four keep ratios at once",
    "one_token": "`fast` with one token kept",
    "dense_p8_half": "dense patch 8 with the half-resolution decoder",
    "elastic": "`fast` trained at all five keep ratios at once",
}
_WAYS = {
    "monai": "MONAI transforms and `sliding_window_inference`",
    "same windows": "`sparseg predict` at equal settings",
    "default": "`sparseg predict`",
    "body only": "`sparseg predict --body-only`",
}
Result = Mapping[str, Any]


def model_table(result: Result) -> str:
    """Of `sparseg bench model`: both modes of a variant in one line."""
    rows = {(row["variant"], row["mode"]): row for row in result["rows"]}
    lines = []
    for name, words in _MODELS.items():
        if (name, "inference") not in rows or (name, "training") not in rows:
            continue
        one, two = rows[name, "inference"], rows[name, "training"]
        ratios = [_ratio(row, rows["sparse", row["mode"]]) for row in (one, two)]
        lines.append(
            [
                words,
                *(f"{one['seconds']:.2f}", ratios[0], f"{two['seconds']:.2f}", ratios[1]),
                f"{one['macs'] / 1e9:.1f}",
                f"{one['peak_memory_bytes'] / 2**30:.1f} / {two['peak_memory_bytes'] / 2**30:.1f}",
                "not measured" if one["quality"] is None else f"{one['quality']['dice']:.3f}",
            ]
        )
    head = ["model", "inference s", "time / sparse", "training step s", "time / sparse", "GMACs"]
    return _markdown([*head, "peak GiB (inference / training)", "Dice"], lines)


def files_table(result: Result) -> str:
    """Of `sparseg bench files`."""
    rows = {row["way"]: row for row in result["rows"]}
    lines = [
        [
            words,
            f"{row['seconds']:.1f}",
            f"{row['other_seconds']:.2f}",
            str(row["num_windows"]),
            f"{row['peak_memory_bytes'] / 2**30:.2f}",
            _ratio(rows["monai"], row),
            "" if way == "monai" else f"{100 * row['same_labels_as_monai']:.1f} %",
            f"{row['dice']:.3f}",
        ]
        for way, words in _WAYS.items()
        for row in (rows[way],)
    ]
    head = ["way", "seconds", "without the network", "windows", "peak GiB", "MONAI / this"]
    return _markdown([*head, "same labels", "mean Dice"], lines)


def organs_table(result: Result) -> str:
    """Of `sparseg evaluate`: the classes that the reference of its one case has."""
    (case,) = result["cases"]
    lines = [
        [
            found["name"],
            f"{found['dice']:.3f}",
            "-" if found["hd95_mm"] is None else f"{found['hd95_mm']:.1f}",
            f"{found['nsd']:.3f}",
        ]
        for found in case["classes"]
        if found["num_ref"]
    ]
    return _markdown(["organ", "Dice on CT-C", "HD95 mm", "NSD at 2 mm"], lines)


def steps_table(result: Result) -> str:
    """Of `sparseg bench model`: from the dense model to the fast one, with the Dice of the standing tasks."""
    rows = {(row["variant"], row["mode"]): row for row in result["rows"]}
    tasks = {task: _dice_of_rows(task) for task in _TASKS}
    lines = []
    for name, words in _STEPS.items():
        one, two = rows[name, "inference"], rows[name, "training"]
        lines.append(
            [
                words,
                *(f"{one['seconds']:.2f}", f"{two['seconds']:.2f}", f"{one['macs'] / 1e9:.0f}"),
                f"{one['peak_memory_bytes'] / 2**30:.1f} / {two['peak_memory_bytes'] / 2**30:.1f}",
                *(tasks[task].get(name.removesuffix("_monai"), "not trained") for task in _TASKS),
            ]
        )
    head = ["model", "inference s", "training step s", "GMACs", "peak GiB (inference / training)"]
    return _markdown([*head, *(f"Dice, `{task}`" for task in _TASKS)], lines)


def headline_table(result: Result) -> str:
    """Of `sparseg bench model`: times and memory against dense patch 8, beside the Dice of standing tasks."""
    rows = {(row["variant"], row["mode"]): row for row in result["rows"]}
    tasks = {task: _dice_of_rows(task) for task in ("brain", "small")}
    lines = []
    for name, words in _HEADLINE.items():
        one, two = rows[name, "inference"], rows[name, "training"]
        ratios = [_ratio(rows["dense_p8", row["mode"]], row) for row in (one, two)]
        lines.append(
            [
                words,
                *(f"{one['seconds']:.2f}", ratios[0], f"{two['seconds']:.2f}", ratios[1]),
                f"{one['peak_memory_bytes'] / 2**30:.1f} / {two['peak_memory_bytes'] / 2**30:.1f}",
                *(dice[name.removesuffix("_monai")] for dice in tasks.values()),
            ]
        )
    head = ["model", "inference s", "times faster", "training step s", "times faster"]
    head += ["peak GiB (inference / training)", *(f"Dice, `{task}`" for task in tasks)]
    return _markdown(head, lines)


def elastic_table(result: Result) -> str:
    """Of one model used at many keep ratios, beside models trained for one."""
    columns = {
        "one elastic model": "elastic",
        "a model trained for this ratio": "trained_for_it",
        "a model trained for 0.2": "trained_for_0.2",
    }
    lines = [
        [
            f"{row['keep_ratio']:g}",
            str(row["tokens"]),
            *(f"{fmean(row[key]):.3f} ± {stdev(row[key]):.3f}" for key in columns.values()),
        ]
        for row in result["rows"]
    ]
    return _markdown(["keep ratio", "patches kept", *columns], lines)


def patient_table(result: Result) -> str:
    """Dice of the patient that was trained on."""
    lines = [
        [f"`{row['row']}`", f"{fmean(row['dice']):.3f} ± {stdev(row['dice']):.3f}", str(len(row["dice"]))]
        for row in result["rows"]
    ]
    return _markdown(["row", "Dice on the training patient", "seeds"], lines)


def control_table(_: Result) -> str:
    """Of `sparseg compare` on all standing tasks: what is left without most of the tokens, or one decoder."""
    tasks = {task: _dice_of_rows(task) for task in _TASKS}
    lines = [
        [f"`{name}`", *(dice.get(name, "not trained") for dice in tasks.values())]
        for name in ("one_token", "fast", "fast_elastic", "dense_p8_half", "dense_p8", "dense_p16")
    ]
    return _markdown(["row", *(f"`{task}`" for task in tasks)], lines)


def _dice_of_rows(task: str) -> dict[str, str]:
    """Of the newest comparison on a standing task: mean and deviation over seeds."""
    *_, newest = sorted((ROOT / "benchmarks").glob(f"*-compare-{task}/results.json"))
    found = json.loads(newest.read_text(encoding="utf-8"))
    dice = {row["variant"]: [run["dice"] for run in row["runs"] if run["finished"]] for row in found["rows"]}
    return {
        name: f"{fmean(values):.3f} ± {stdev(values):.3f}" for name, values in dice.items() if len(values) > 1
    }


def rows_table(result: Result) -> str:
    """Of `sparseg compare`: quality of each row, best first."""
    reference = result["reference"]
    dice = [one for one in result["comparisons"] if one["metric"] == "dice"]
    against = {one["variant"]: one for one in dice if one["against"] == reference}
    lines = []
    for row in sorted(result["rows"], key=lambda row: -row["quality"]["dice"]):
        name, quality = row["variant"], row["quality"]
        runs = sum(run["finished"] for run in row["runs"])
        words = f"`{name}`" + (f": {_ROWS[name]}" if name in _ROWS else "")
        lines.append(
            [
                words + ("" if row["complete"] else f" ({runs} of {len(row['runs'])} runs)"),
                *(_spread(quality, key, digits) for key, digits in (("dice", 3), ("hd95_mm", 1))),
                _difference(against.get(name)),
                " > ".join(f"{100 * stage['foreground']:.1f} %" for stage in row["kept"] or ()),
                *(_rate(row[mode]) for mode in ("training", "inference")),
            ]
        )
    head = ["row", "Dice", "HD95 mm", f"difference to `{reference}`, points (95 %)", "patches kept"]
    head += ["training crops/s", "windows/s"]
    used = [index for index in range(len(head)) if any(line[index] for line in lines)]
    return _markdown([head[index] for index in used], [[line[index] for index in used] for line in lines])


def _spread(quality: Result, key: str, digits: int) -> str:
    mean, deviation = quality[key], quality[f"{key}_sd"]
    if mean is None:
        return ""
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _difference(found: Result | None) -> str:
    if found is None or found["mean"] is None:
        return ""
    return f"{100 * found['mean']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def _rate(speed: Result | None) -> str:
    return "" if speed is None else f"{speed['per_second']:.1f}"


TABLES: dict[str, Callable[[Result], str]] = {
    "model": model_table,
    "files": files_table,
    "organs": organs_table,
    "headline": headline_table,
    "steps": steps_table,
    "rows": rows_table,
    "elastic": elastic_table,
    "control": control_table,
    "patient": patient_table,
}


def _ratio(above: Result, below: Result) -> str:
    """Median of the ratios of the rounds."""
    if above is below:
        return "1"
    pairs = list(zip(above["seconds_all"], below["seconds_all"], strict=True))
    if len(pairs) < 5:
        raise ValueError("no ratio from fewer than 5 pairs")
    return f"{median(one / other for one, other in pairs):.2f}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    # An empty cell is one space, not two.
    return "".join(
        re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(cells)} |\n") for cells in (head, rule, *lines)
    )


def with_tables(text: str) -> str:
    """A page with every table made anew."""

    def made(match: re.Match[str]) -> str:
        head, kind, file, _, end = match.groups()
        return head + TABLES[kind](json.loads((ROOT / file).read_text(encoding="utf-8"))) + end

    return _TABLE.sub(made, text)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = 0
    for name in PAGES:
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        new = with_tables(old)
        if new != old:
            stale += 1
            sys.stdout.write(f"{name}: a table differs from its rows\n")
            if not options.check:
                page.write_text(new, encoding="utf-8")
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
