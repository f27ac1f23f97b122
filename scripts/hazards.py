"""`make hazards`: runs the hazard tests and prints one table of their figures, a row per known fault.

Exit code 0 if every row has its figure and passes, 1 otherwise. Tests that are repeated at random run
SPARSEG_HAZARD_ROUNDS times, 200 by default here. How a test says a figure: tests/hazards/figures.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "hazards"
ROUNDS = 200


@dataclass(frozen=True)
class Row:
    """A fault of the table.

    Attributes:
        name: Row id.
        fault: What is wrong with the input or goes wrong with the machine.
        trials: Least number of trials that must have been counted; 0 where the figure is measured.
        per_round: `trials` are for each of the rounds.
    """

    name: str
    fault: str
    trials: int = 0
    per_round: bool = False


ROWS = (
    Row("N1", "NIfTI: qform and sform contradict each other", 16),
    Row("N2", "NIfTI: no orientation", 1),
    Row("N3", "NIfTI: oblique grid", 0),
    Row("N4", "NIfTI: sheared grid", 1),
    Row("N5", "NIfTI: pixdim against sform", 3),
    Row("N6", "NIfTI: metres, micrometres", 0),
    Row("N7", "NIfTI: 4-D, RGB, vector, 2-D, complex", 6),
    Row("N8", "NIfTI: scaling, voxel types, byte order", 0),
    Row("N9", "NaN, infinity, beyond float32", 4),
    Row("N10", "constant image", 2),
    Row("N11", "tiny and thin images", 3),
    Row("N12", "NIfTI: truncated", 10),
    Row("N13", "bit rot", 300),
    Row("N14", "NIfTI: not gzip, empty, HTML, trailing bytes", 8),
    Row("N15", "NIfTI: sizes and offsets that lie", 5),
    Row("N16", "gzip bomb of 512 MiB and of 10 GiB", 2),
    Row("N17", "header on which ITK hangs", 1),
    Row("N18", "header fuzz", 500, per_round=True),
    Row("N19", "one anatomy in 48 axis orders, aligned and oblique", 96),
    Row("N20", "false alarm: odd but valid files", 30),
    Row("L1", "label ids that are none", 4),
    Row("L2", "empty label", 1),
    Row("L3", "image and label on different grids", 4),
    Row("L4", "ids invented, class names permuted", 0),
    Row("L5", "one image in training and validation", 1),
    Row("D1", "DICOM: slices missing, doubled, not uniform", 4),
    Row("D2", "DICOM: instance numbers in disorder", 3),
    Row("D3", "DICOM: localizer, two series, two spacings", 3),
    Row("D4", "DICOM: gantry tilt", 1),
    Row("D5", "DICOM: short pixels, no position, multi-frame, slopes", 4),
    Row("A1", "NaN weights and logits", 3),
    Row("A2", "seams between windows", 0),
    Row("A3", "batch size, threads", 4),
    Row("A4", "all tokens kept against the dense path", 0),
    Row("T1", "training: kill -9 at any moment", 1, per_round=True),
    Row("T2", "training: resume", 0),
    Row("T3", "training: disk full", 9),
    Row("T4", "training: loader worker killed", 0),
    Row("T5", "training: NaN gradient", 1),
    Row("T6", "training: cache entry damaged or cut short", 1),
    Row("T7", "training: Ctrl-C, SIGTERM, SIGUSR1, --max-time", 4),
    Row("T8", "training: one process of several dies", 0),
    Row("T9", "training: same seed twice", 0),
    Row("P1", "predict: bad cases among good ones", 95),
    Row("P2", "predict: kill -9 at any moment", 1, per_round=True),
    Row("P3", "predict: resume over stumps, other weights, other input", 3),
    Row("P4", "predict: disk full", 1),
    Row("P5", "predict: memory bound", 0),
    Row("P6", "predict: GPU out of memory", 1),
    Row("P7", "predict: four processes, one folder", 20),
    Row("P8", "predict: hostile names", 5),
    Row("X1", "malicious artefacts", 9),
    Row("X2", "unsafe second try of a checkpoint", 1),
    Row("X3", "archives that lead out, link, never end", 6),
    Row("X4", "patient data in anything written or printed", 12),
    Row("X5", "calls over the network", 1),
    Row("X6", "dangerous calls in the source", 9),
)


@dataclass
class Found:
    """What the tests of one row said: trials per figure, largest measured value per figure, outcomes."""

    counts: dict[str, list[int]] = field(default_factory=dict)
    values: dict[str, tuple[float, float, str]] = field(default_factory=dict)
    passed: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, entry: dict[str, Any]) -> None:
        """Take one line of the figures file into account."""
        if "outcome" in entry:
            self.passed += entry["outcome"] == "passed"
            if entry["outcome"] == "failed":
                self.failed.append(entry["test"])
        elif "bad" in entry:
            bad, of = self.counts.get(entry["what"], (0, 0))
            self.counts[entry["what"]] = [bad + entry["bad"], of + entry["of"]]
        else:
            new = (entry["value"], entry["limit"], entry["unit"])
            old = self.values.get(entry["what"], new)
            # NaN compares as false: it must not hide behind a number.
            self.values[entry["what"]] = old if old[0] >= new[0] else new


def gather(entries: Iterable[dict[str, Any]]) -> dict[str, Found]:
    """Sort the lines of the figures file by row."""
    found: dict[str, Found] = {row.name: Found() for row in ROWS}
    for entry in entries:
        for name in entry["rows"] if "rows" in entry else [entry["row"]]:
            found[name].add(entry)
    return found


def judge(row: Row, found: Found, rounds: int) -> tuple[list[tuple[str, str]], str]:
    """Each figure with what was wanted, and `pass`, `FAIL` or `missing`."""
    trials = row.trials * (rounds if row.per_round else 1)
    figures: list[tuple[str, str]] = []
    good = not found.failed
    for what, (bad, of) in found.counts.items():
        figures.append((f"{what}: {bad} of {of}", "0"))
        good = good and bad == 0
    for what, (value, limit, unit) in found.values.items():
        figures.append((f"{what}: {value:.3g} {unit}".rstrip(), f"<= {limit:g} {unit}".rstrip()))
        good = good and value <= limit
    tried = max((of for _, of in found.counts.values()), default=0)
    if tried < trials:
        figures.append((f"{tried} trials", f">= {trials}"))
        good = False
    if not found.counts and not found.values:
        return [("none", "a figure")], "FAIL" if found.failed else "missing"
    return figures, "pass" if good else "FAIL"


def make_table(found: dict[str, Found], rounds: int) -> tuple[Table, list[str]]:
    """The table, and the ids of the rows that do not pass."""
    table = Table("row", "fault", "figure", "wanted", "tests", "", box=SIMPLE)
    open_rows = []
    for row in ROWS:
        (first, *others), verdict = judge(row, found[row.name], rounds)
        tests = f"{found[row.name].passed}"
        if found[row.name].failed:
            tests += f" ({len(found[row.name].failed)} failed)"
        table.add_row(row.name, row.fault, *first, tests, verdict)
        for figure, wanted in others:
            table.add_row("", "", figure, wanted)
        if verdict != "pass":
            open_rows.append(row.name)
    return table, open_rows


def run_tests(figures: Path, rounds: int, arguments: list[str]) -> None:
    """Run the hazard tests; a test that fails shows in the figures."""
    environment = os.environ | {
        "SPARSEG_HAZARD_FIGURES": str(figures),
        "SPARSEG_HAZARD_ROUNDS": str(rounds),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not network", *(arguments or [str(TESTS)])]
    subprocess.run(command, env=environment, cwd=ROOT, check=False)


def main(argv: list[str] | None = None) -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, help="print the table of these figures; run nothing")
    parser.add_argument("--keep", type=Path, help="keep the figures in this file")
    parser.add_argument("pytest", nargs="*", help="tests to run and other arguments of pytest; default: all")
    arguments = parser.parse_args(argv)
    rounds = int(os.environ.get("SPARSEG_HAZARD_ROUNDS", ROUNDS))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sparseg-hazards-") as folder:
        figures = arguments.figures or arguments.keep or Path(folder) / "figures.jsonl"
        if not arguments.figures:
            figures.write_text("")
            run_tests(figures.resolve(), rounds, arguments.pytest)
        found = gather(json.loads(line) for line in figures.read_text().splitlines())
    table, open_rows = make_table(found, rounds)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for row in ROWS:
        for test in found[row.name].failed:
            console.print(f"{row.name} failed: {test}", soft_wrap=True, highlight=False)
    passed = len(ROWS) - len(open_rows)
    console.print(f"{passed} of {len(ROWS)} rows pass; {rounds} rounds; {time.monotonic() - start:.0f} s")
    if open_rows:
        console.print(f"not passed: {', '.join(open_rows)}")
    return int(bool(open_rows))


if __name__ == "__main__":
    sys.exit(main())
