"""The table of `sparseg bench windows`; `python -m sparseg.benchmark.windows_report FILE` writes Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from sparseg.benchmark.report import MIN_PAIRS, as_markdown

COLUMNS = (
    "variant",
    "way",
    "seconds (p10-p90)",
    "network",
    "windows (skipped)",
    "peak GiB",
    "all windows / this",
    "this / sparse",
    "same labels",
    "Dice",
)
_ALL, _BASE = "all windows", "sparse"
Key = tuple[str, str]


def ratio(result: Mapping[str, Any], above: Key, below: Key) -> float | None:
    """Median of the ratios of the rounds of two rows (variant, way); None below 5 rounds or without a row."""
    rows: dict[Key, list[float]] = {
        (row["variant"], row["way"]): row["seconds_all"] for row in result["rows"]
    }
    if above not in rows or below not in rows or len(rows[above]) < MIN_PAIRS:
        return None
    return median(one / other for one, other in zip(rows[above], rows[below], strict=True))


def table_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a result as rows of text, head first; notes to stand below come from `table_notes`."""
    return [list(COLUMNS), *(_cells(result, row) for row in result["rows"])]


def table_notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences that belong below the table."""
    machine, first = result["machine"], result["rows"][0]
    shape = " x ".join(f"{n:g}" for n in first["shape"])
    notes = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"load before the run {machine['load_1min']}",
        f"synthetic CT of {shape} voxels on the model grid, overlap {first['overlap']}, "
        f"{first['preset'] or 'own model'}; windows and sums only, no reading, resampling or writing",
        f"{first['pairs']} pair(s), {first['warmup']} warm-up",
        "same labels: as with all windows of the same variant, on the model grid",
    ]
    if first["pairs"] < MIN_PAIRS:
        notes.append(f"no ratio from fewer than {MIN_PAIRS} pairs")
    return notes


def _cells(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    variant, way = row["variant"], row["way"]
    ratios = [
        ratio(result, (variant, _ALL), (variant, way)),
        ratio(result, (variant, way), (_BASE, way)),
    ]
    return [
        variant,
        way,
        f"{row['seconds']:.2f} ({row['p10']:.2f}-{row['p90']:.2f})",
        f"{row['network_seconds']:.2f}",
        f"{row['num_windows']} ({row['num_skipped']})",
        f"{row['peak_memory_bytes'] / 2**30:.2f}",
        *("-" if one is None else f"{one:.2f}x" for one in ratios),
        f"{100 * row['same_labels']:.3f} %",
        "random weights" if row["dice"] is None else f"{row['dice']:.4f}",
    ]


def main() -> None:
    """Write the Markdown of the result file named on the command line."""
    result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write(as_markdown(table_rows(result), table_notes(result)))


if __name__ == "__main__":
    main()
