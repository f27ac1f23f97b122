"""The result file and the table made from it; `python -m sparseg.benchmark.report FILE` writes Markdown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sparseg.errors import ConfigError, InputError
from sparseg.volumes.atomic import write_bytes_atomically

MIN_PAIRS = 5
BASE = "sparse"
QUALITY_KEYS = ("dice", "dice_with_empty", "hd95_mm", "nsd")
NO_QUALITY = "random weights: see README for quality"
OTHER_QUALITY = "of trained weights of this preset; the timed weights are random"
COLUMNS = (
    "variant",
    "mode",
    "seconds (p10-p90)",
    "of them",
    "GMACs",
    "tokens",
    "peak GiB",
    "time / sparse",
    "Dice",
)


def write_json(path: Path | str, result: Mapping[str, Any]) -> None:
    """Write a result whole or not at all; missing folders are made.

    Raises:
        VolumeError: the disk refuses.
    """
    path = Path(path)
    content = (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, content)


def require_writable(path: Path) -> None:
    """Fail before the run, not after it.

    Raises:
        ConfigError: a folder, or a place that cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(
            "the result must be a file in a writable folder", remedy="choose another --json", where=path
        )


def run_to_json(
    measure: Callable[..., dict[str, Any]], json_file: Path | None, **options: Any
) -> dict[str, Any]:
    """Run a benchmark and store its result.

    Args:
        measure: `bench_files` or `bench_windows`.
        json_file: Where the result goes; None stores nothing.
        **options: Arguments of `measure`.

    Raises:
        ConfigError: as `measure`, or a file that cannot be written.
    """
    if json_file is not None:
        require_writable(json_file)
    result = measure(**options)
    if json_file is not None:
        write_json(json_file, result)
    return result


def read_quality(path: Path | str) -> dict[str, Any]:
    """Read the means of a `metrics.json` of `sparseg evaluate`: `dice`, `hd95_mm`, `nsd`, `num_cases`.

    Raises:
        ConfigError: not such a file.
    """
    try:
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
        quality: dict[str, Any] = {key: metrics["mean"].get(key) for key in QUALITY_KEYS}
        quality["num_cases"] = metrics["num_cases"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "quality must be the metrics.json of an evaluation",
            received=f"{type(error).__name__} {error}",
            remedy="make one with sparseg evaluate",
            where=path,
        ) from None
    return quality


def ratio_to_sparse(result: Mapping[str, Any], variant: str, mode: str) -> float:
    """How many times as long as `sparse` a variant took: the median of the ratios of the single pairs.

    Raises:
        InputError: fewer than 5 pairs, or no such rows.
    """
    rows = {row["variant"]: row for row in result["rows"] if row["mode"] == mode}
    if not {variant, BASE} <= set(rows):
        raise InputError(
            "a ratio needs both rows",
            received=", ".join(rows),
            where=f"{variant}, {mode}",
            remedy="time both variants in one run",
        )
    pairs = list(zip(rows[variant]["seconds_all"], rows[BASE]["seconds_all"], strict=True))
    if len(pairs) < MIN_PAIRS:
        raise InputError(
            f"a ratio needs at least {MIN_PAIRS} pairs",
            received=len(pairs),
            remedy=f"run with {MIN_PAIRS} pairs or more",
            where=f"{variant}, {mode}",
        )
    return float(median(own / base for own, base in pairs))


def table_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a result as rows of text, head first; notes to stand below come from `table_notes`."""
    return [list(COLUMNS), *(_cells(result, row) for row in result["rows"])]


def table_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences that belong below the table: machine, what was left out, what stands for quality."""
    machine, first = result["machine"], result["rows"][0]
    notes = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {first['dtype']}, "
        f"preset {first['preset']}, batch {first['batch']}, load before the run {machine['load_1min']}"
    ]
    notes += [f"{name} left out: {reason}" for name, reason in first["left_out"].items()]
    notes += sorted({f"Dice: {row['quality_note']}" for row in result["rows"]})
    if any(len(row["seconds_all"]) < MIN_PAIRS for row in result["rows"]):
        notes.append(f"no ratio from fewer than {MIN_PAIRS} pairs")
    return notes


def _cells(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    quality = row["quality"]
    if row["variant"] == BASE:
        ratio = "1"
    else:
        try:
            ratio = f"{ratio_to_sparse(result, row['variant'], row['mode']):.2f}x"
        except InputError:
            ratio = "-"
    return [
        row["variant"],
        row["mode"],
        f"{row['seconds']:.3f} ({row['p10']:.3f}-{row['p90']:.3f})",
        ", ".join(f"{part} {seconds:.3f}" for part, seconds in row["parts"].items()),
        f"{row['macs'] / 1e9:.4g}",
        " > ".join(str(count) for count in row["token_counts"]),
        f"{row['peak_memory_bytes'] / 2**30:.2f}",
        ratio,
        f"{quality['dice']:.3f}" if quality and quality["dice"] is not None else "not measured",
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table and its notes as Markdown."""
    return as_markdown(table_rows(result), table_notes(result))


def as_markdown(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A table, its head first, and a list of notes below it."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return table + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def main() -> None:
    """Write the Markdown of the result file named on the command line."""
    sys.stdout.write(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
