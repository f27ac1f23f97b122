"""`sparseg check`: find what is wrong with a dataset, and repair what can be repaired safely."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

if TYPE_CHECKING:
    from sparseg.datasets.check import CheckResult
    from sparseg.datasets.findings import Finding

EXIT_CODES = {None: 0, "note": 0, "warning": 1, "error": 2}
_MAX_ROWS = 20
_MAX_NAMES = 3


def check(
    dataset: Path,
    /,
    *,
    out: Path | None = None,
    json: Path | None = None,
    html: Path | None = None,
    fix: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    to: Path | None = None,
    workers: int | None = None,
    strict: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Read every image and label of a dataset and list all faults, with a picture of each.

    Writes check.json and check.html; the dataset itself is never changed. Exit code 0: clean, notes at most;
    1: warnings; 2: errors, or the dataset cannot be read. With --fix the code still tells about the source.

    Parameters
    ----------
    dataset
        Dataset folder, or a file that lists the cases.
    out
        Folder for the reports; default: check-<name of the dataset> in the current folder.
    json
        Where to write the JSON report instead.
    html
        Where to write the HTML report instead.
    fix
        Write a copy with all safe repairs made; cases that have other errors are left out, by name.
    to
        New folder for the repaired copy.
    workers
        Processes; default: all processors.
    strict
        Warnings count as errors: exit code 2.
    """
    from sparseg.cli.output import progress_bar
    from sparseg.datasets.check import check_dataset
    from sparseg.datasets.read import read_dataset

    _require_consistent(fix, to, workers)
    folder = out or Path(f"check-{_name(dataset)}")
    json, html = json or folder / "check.json", html or folder / "check.html"
    _require_outside(dataset, json, html)
    found = read_dataset(dataset, strict=False)
    if to is not None:
        # Refused before an hour of reading, not after; a plain check does not load the writers.
        from sparseg.datasets.repair import require_new

        require_new(to, found)
    sys.stdout.write(f"{found.describe()}\n")
    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(found.cases))
        result = check_dataset(found, workers=workers, on_case=lambda _: bar.advance(task))
    _print(result)
    _write(result, json, html)
    if fix and to is not None:
        _fix(result, to, workers)
    code = EXIT_CODES[result.severity]
    return EXIT_CODES["error"] if strict and code else code


def _name(dataset: Path) -> str:
    from sparseg.volumes.io import case_name

    resolved = dataset.resolve()
    return case_name(resolved.stem if resolved.is_file() else resolved.name)


def _require_consistent(fix: bool, to: Path | None, workers: int | None) -> None:
    from sparseg.errors import ConfigError

    if fix != (to is not None):
        raise ConfigError(
            "--fix and --to go together",
            received="--fix alone" if fix else "--to alone",
            remedy="give --fix --to NEW_FOLDER",
            where="--fix",
        )
    if workers is not None and workers < 1:
        raise ConfigError(
            "there must be at least one worker", received=workers, remedy="give 1 or more", where="--workers"
        )


def _require_outside(dataset: Path, *paths: Path) -> None:
    """Refuse reports inside the dataset: it stays as it is, and a layout might take them for cases."""
    from sparseg.errors import ConfigError

    root = dataset.resolve()
    for path in paths:
        if root.is_dir() and path.resolve().is_relative_to(root):
            raise ConfigError(
                "reports must not be written into the dataset",
                received=path,
                remedy="give --out with a folder elsewhere",
                where="--out",
            )


def _write(result: CheckResult, json: Path, html: Path) -> None:
    from json import dumps

    from sparseg.cli.output import progress_bar
    from sparseg.viewer.findings_page import write_findings_page
    from sparseg.volumes.atomic import write_bytes_atomically

    for path in (json, html):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n"
    # A file name that is not valid text in the file system's encoding still gives a report.
    write_bytes_atomically(json, content.encode(errors="replace"))
    with progress_bar() as bar:
        task = bar.add_task("pictures", total=len(result.findings))
        write_findings_page(
            html, result.dataset, result.reports, result.findings, on_finding=lambda _: bar.advance(task)
        )
    sys.stdout.write(f"{json}\n{html}\n")


def _fix(result: CheckResult, to: Path, workers: int | None) -> None:
    from sparseg.cli.output import progress_bar
    from sparseg.datasets.repair import repair_dataset

    with progress_bar() as bar:
        task = bar.add_task("repairing", total=len(result.reports))
        done = repair_dataset(
            result.dataset,
            result.reports,
            result.findings,
            to,
            workers=workers,
            on_case=lambda _: bar.advance(task),
        )
    for repair in done.repaired:
        sys.stdout.write(f"repaired {repair.case}: {repair.repair}: {repair.detail}\n")
    for exclusion in done.excluded:
        sys.stdout.write(f"left out {exclusion.case}: {exclusion.reason}\n")
    sys.stdout.write(
        f"{done.root}: {len(done.copied)} cases copied, {len(done.repaired)} repairs, "
        f"{len(done.excluded)} cases left out\n"
    )


def _print(result: CheckResult) -> None:
    counts = result.counts
    if result.findings:
        _print_table(_rows(result.findings))
    levels = ", ".join(f"{level} {counts[level]}" for level in ("errors", "warnings", "notes"))
    sys.stdout.write(f"{counts['usable']} of {counts['cases']} cases usable; {levels}\n")


def _rows(findings: Sequence[Finding]) -> list[tuple[str, str, str, str, str]]:
    """One row per finding; beyond 20, one per code and repair with their number and the first names."""
    if len(findings) <= _MAX_ROWS:
        return [(f.severity, f.case, f.code, f.message, _advice(f)) for f in findings]
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.code, finding.repair), []).append(finding)
    rows = []
    for (severity, code, _), members in groups.items():
        names = ", ".join(dict.fromkeys(finding.case for finding in members[:_MAX_NAMES]))
        more = f" and {len(members) - _MAX_NAMES} more" if len(members) > _MAX_NAMES else ""
        first = f"{len(members)}x, the first: " if len(members) > 1 else ""
        rows.append((severity, names + more, code, first + members[0].message, _advice(members[0])))
    return rows


def _advice(finding: Finding) -> str:
    return f"--fix ({finding.repair}), or {finding.remedy}" if finding.repair else finding.remedy


def _print_table(rows: Sequence[tuple[str, str, str, str, str]]) -> None:
    from rich.table import Table

    from sparseg.cli.output import console

    table = Table()
    for name, ratio in (("", None), ("case", 2), ("code", None), ("found", 4), ("what to do", 3)):
        table.add_column(name, overflow="fold", ratio=ratio)
    for row in rows:
        table.add_row(*row)
    console().print(table)
