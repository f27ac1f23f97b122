"""How far the training of a fold has come, read from its run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseg.training.log import LOG
from sparseg.training.state import read_progress

# Enough for the rows between two validations of most runs; the file itself grows by the step.
_TAIL_BYTES = 2**17


@dataclass(frozen=True)
class FoldStatus:
    """State of one training run.

    Attributes:
        fold: Its number.
        finished: Whether its training is done, to the end of the schedule or of its patience.
        started: Whether there is a state to resume from.
        step: Last step in its log.
        loss: Training loss of that step; NaN if there is none.
        dice: Latest mean validation Dice; NaN if there is none.
    """

    fold: int
    finished: bool = False
    started: bool = False
    step: int = 0
    loss: float = math.nan
    dice: float = math.nan


def read_status(run: Path, fold: int) -> FoldStatus:
    """Read the state of a fold's run folder, which need not exist."""
    progress = read_progress(run)
    rows = list(_last_rows(run / LOG))
    steps = [row for row in rows if row.get("kind") == "train"]
    validations = [row for row in rows if row.get("kind") == "validation"]
    return FoldStatus(
        fold,
        finished=progress is not None and progress.finished,
        started=progress is not None,
        step=max([row["step"] for row in rows if "step" in row], default=progress.step if progress else 0),
        loss=_number(steps[-1].get("loss")) if steps else math.nan,
        dice=_number(validations[-1].get("mean_dice")) if validations else math.nan,
    )


def last_error(log: Path) -> str:
    """The last line with an error in what a training printed, else its last line; empty without any."""
    lines = [line.strip() for line in _tail(log) if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or [""])[-1].removeprefix("error:").strip()


def _last_rows(log: Path) -> Iterator[dict[str, Any]]:
    for line in _tail(log):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the first line of the tail is cut, the last one may still be written
        if isinstance(row, dict):
            yield row


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
