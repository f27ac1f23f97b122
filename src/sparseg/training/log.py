"""The log of a run: one JSON object per line, and `progress.png` drawn from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


def append(folder: Path, row: dict[str, Any]) -> None:
    """Append one row to `log.jsonl`; NaN is written as null."""
    with (folder / LOG).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(_plain(row)) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def read(folder: Path) -> list[dict[str, Any]]:
    """All complete rows of a run's log; a last line without its end was cut off while being written."""
    path = folder / LOG
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def truncate(folder: Path, step: int) -> None:
    """Drop rows behind `step`, which a resumed run will write again."""
    rows = [row for row in read(folder) if row["step"] <= step]
    temporary = folder / f".{LOG}.new"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(folder / LOG)


def draw(folder: Path) -> None:
    """Draw `progress.png`: training loss and validation Dice over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read(folder)
    steps = [row for row in rows if row["kind"] == "train"]
    validations = [row for row in rows if row["kind"] == "validation"]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    left.plot(
        [row["step"] for row in steps], [row["loss"] for row in steps], color="#7f9ac0", lw=1, label="loss"
    )
    left.set(xlabel="step", ylabel="training loss")
    right = left.twinx()
    right.set(ylabel="validation Dice", ylim=(0, 1))
    if validations:
        names = list(validations[-1]["dice"])
        x = [row["step"] for row in validations]
        for number, name in enumerate(names):
            values = [_or_nan(row["dice"].get(name)) for row in validations]
            style = ("-", "--", ":")[number // 10 % 3]  # the colours repeat after ten
            right.plot(x, values, color=f"C{number % 10}", ls=style, lw=1.0, label=name)
        right.plot(
            x, [_or_nan(row["mean_dice"]) for row in validations], "k-o", ms=3, lw=2, label="mean Dice"
        )
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.08, 0.5))
    temporary = folder / ".progress.png"
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(folder / "progress.png")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
