"""What the commands print: errors to stderr, results and tables to stdout.

Progress only where it can be seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def print_error(message: str) -> None:
    """One line on stderr; of several processes all but the main one say who they are."""
    rank = os.environ.get("RANK", "0")
    speaker = "" if rank == "0" else f"process {rank}: "
    sys.stderr.write(f"{speaker}error: {message}\n")


def console() -> Console:
    """Console for results; wide enough for tables where the output is not a terminal."""
    from rich.console import Console

    # Class and case names are the user's: `[x]` or `:x:` in them is text, neither markup nor a picture.
    width = None if sys.stdout.isatty() else 140
    return Console(width=width, highlight=False, markup=False, emoji=False)


def progress_bar(*, visible: bool = True) -> Progress:
    """Progress bar on stderr; silent where stderr is not a terminal, or where another process draws it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True, markup=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=screen, transient=True, disable=not (visible and screen.is_terminal))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; the first column is left-aligned, the others right-aligned."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    console().print(table)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Aligned `name: value` lines."""
    width = max(map(len, pairs)) + 1
    for name, value in pairs.items():
        sys.stdout.write(f"{name + ':':<{width}} {_text(value)}\n")


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
