"""The log of a run: one JSON object per line, and `progress.png` drawn from it.

Rows of kind `train` have step, loss, lr, seconds and data_wait_share, and where they are known
crops_per_second and `selection` (what pruning kept); rows of kind `validation` have step, dice per output and
mean_dice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.errors import CheckpointError

LOG = "log.jsonl"
PICTURE = "progress.png"


def append(folder: Path, row: Mapping[str, Any]) -> None:
    """Append one row to `log.jsonl` in a single write; NaN and infinity are written as null.

    Raises:
        CheckpointError: the disk is full or gone; the log stays as it was.
    """
    line = json.dumps(_plain(row), allow_nan=False).encode() + b"\n"
    try:
        file = os.open(folder / LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _write(file, line)
        finally:
            os.close(file)
    except OSError as error:
        raise CheckpointError(
            "the log of a run must be writable",
            received=error.strerror or str(error),
            remedy="check that the disk has free space; then go on with --resume",
            where=folder / LOG,
            code="log-write",
        ) from error


def _write(file: int, line: bytes) -> None:
    size = os.fstat(file).st_size
    # What a crash cut off must not swallow the next row.
    if size and os.pread(file, 1, size - 1) != b"\n":
        line = b"\n" + line
    written = os.write(file, line)
    if written < len(line):
        os.ftruncate(file, size)
        raise OSError(f"{written} of {len(line)} bytes written")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole rows of a run's log; a line that a crash cut off or a power cut blanked is left out."""
    path = folder / LOG
    if not path.is_file():
        return []
    # What follows the last line end was not written to its end.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [row for line in lines if (row := _row(line)) is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "step" in row and "kind" in row else None


def truncate(folder: Path, step: int) -> None:
    """Drop rows behind `step`, which a resumed run will write again."""
    rows = [row for row in read(folder) if row["step"] <= step]
    temporary = folder / f".{LOG}.new"
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / LOG)


def draw(folder: Path) -> None:
    """Draw `progress.png` from the log; takes about a second, so only as often as the run is validated."""
    from sparseg.training.curves import progress_figure

    temporary = folder / f".{PICTURE}"
    progress_figure(read(folder)).savefig(temporary, dpi=110, format="png")
    temporary.replace(folder / PICTURE)
