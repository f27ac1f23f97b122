"""The table of `sparseg bench files`; `python -m sparseg.benchmark.files_report FILE` writes Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from sparseg.benchmark.files_run import BASE, PARTS
from sparseg.benchmark.report import MIN_PAIRS, as_markdown

COLUMNS = (
    "way",
    "seconds (p10-p90)",
    "of them",
    "without network",
    "windows",
    "peak GiB",
    "monai / this",
    "the same without network",
    "same labels",
    "Dice",
)


def ratio_to_this(result: Mapping[str, Any], way: str, key: str = "seconds_all") -> float | None:
    """How many times as long MONAI took: the median of the ratios of the single rounds; None below 5 rounds.

    Args:
        result: What `bench_files` returned.
        way: The way to compare.
        key: `seconds_all`, or `other_seconds_all` for everything but the network.
    """
    rows = {row["way"]: row for row in result["rows"]}
    pairs = list(zip(rows[BASE][key], rows[way][key], strict=True))
    return median(base / own for base, own in pairs) if len(pairs) >= MIN_PAIRS else None


def table_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a result as rows of text, head first; notes to stand below come from `table_notes`."""
    return [list(COLUMNS), *(_cells(result, row) for row in result["rows"])]


def table_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences that belong below the table."""
    machine, first = result["machine"], result["rows"][0]
    shape, spacing = (" x ".join(f"{n:g}" for n in first[key]) for key in ("shape", "spacing_mm"))
    pairs = first["pairs"]
    notes = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"MONAI {machine['monai']}, load before the run {machine['load_1min']}",
        f"synthetic CT of {shape} at {spacing} mm, roi {first['roi'][0]}, overlap {first['overlap']}, "
        f"{first['preset'] or 'own model'}, weights: {first['weights']}",
        f"{pairs} pair{'s' if pairs > 1 else ''}, {first['warmup']} warm-up",
    ]
    if pairs < MIN_PAIRS:
        notes.append(f"no ratio from fewer than {MIN_PAIRS} pairs")
    return notes


def _cells(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    ratios = [ratio_to_this(result, row["way"], key) for key in ("seconds_all", "other_seconds_all")]
    return [
        row["way"],
        f"{row['seconds']:.1f} ({row['p10']:.1f}-{row['p90']:.1f})",
        ", ".join(f"{part} {row['parts'][part]:.2f}" for part in PARTS if row["parts"][part]),
        f"{row['other_seconds']:.2f}",
        str(row["num_windows"]),
        f"{row['peak_memory_bytes'] / 2**30:.2f}",
        *("-" if one is None else f"{one:.2f}x" for one in ratios),
        f"{100 * row['same_labels_as_monai']:.3f} %",
        "random weights" if row["dice"] is None else f"{row['dice']:.4f}",
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table and its notes as Markdown."""
    return as_markdown(table_rows(result), table_notes(result))


def main() -> None:
    """Write the Markdown of the result file named on the command line."""
    sys.stdout.write(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
