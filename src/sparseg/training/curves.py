"""The curves of a run as one figure: loss and Dice, learning rate, speed, and what pruning keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

Row = Mapping[str, Any]
Series = tuple[np.ndarray, np.ndarray]

MAX_POINTS = 2000
_STYLES = ("-", "--", ":")
_BLUE, _GREY = "#1f4e9c", "#b7c4dc"


def progress_figure(rows: Sequence[Row]) -> Figure:
    """Draw the rows of a log.

    Args:
        rows: From `log.read`.

    Returns:
        Loss with validation Dice; learning rate, speed with data wait; and where rows have `selection`, one
        panel per pruning stage with the shares kept, and one with the agreement of training and evaluation.
    """
    steps = [row for row in rows if row["kind"] == "train"]
    validations = [row for row in rows if row["kind"] == "validation"]
    selection = selection_curves(rows)
    shares = shares_by_stage(selection)
    figure = Figure(figsize=(11, 11 if selection else 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(3 if selection else 2, 1, squeeze=False)[:, 0]
    _draw_loss(parts[0].subplots(), steps, validations)
    left, right = parts[1].subplots(1, 2)
    _draw_rate(left, steps)
    _draw_speed(right, steps)
    if selection:
        panels = _row_of(parts[2], len(shares) + 1)
        _draw_shares(panels, shares, shares_by_stage(selection, "kept_eval"))
        _draw_agreement(panels[-1], _only(selection, "agreement"))
    return figure


def series(rows: Sequence[Row], key: str) -> Series:
    """Steps and values of the rows that have a key; null becomes NaN."""
    found = [(row["step"], row[key]) for row in rows if key in row]
    values = [np.nan if value is None else value for _, value in found]
    return np.array([step for step, _ in found], dtype=np.float64), np.array(values, dtype=np.float64)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place, NaN left out; NaN where there is none."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return _divide(sums[end] - sums[start], counts[end] - counts[start])


def thin(curve: Series, most: int = MAX_POINTS) -> Series:
    """Average neighbours until at most `most` points are left; NaN left out of the means."""
    steps, values = curve
    if len(steps) <= most:
        return curve
    starts = np.arange(most) * len(steps) // most
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    counts = np.add.reduceat(known.astype(np.int64), starts)
    sizes = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / sizes, _divide(sums, counts)


def selection_curves(rows: Sequence[Row]) -> dict[str, Series]:
    """One curve per key of the rows' `selection`; nested keys are joined by `/`."""
    flat = [
        {"step": row["step"], **flatten(row["selection"])}
        for row in rows
        if isinstance(row.get("selection"), Mapping)
    ]
    names = dict.fromkeys(name for row in flat for name in row if name != "step")
    return {name: series(flat, name) for name in names}


def flatten(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested mappings as one, `{"kept": {"0": 1}}` -> `{"kept/0": 1}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flatten(value, f"{head}{name}/")
        else:
            result[f"{head}{name}"] = value
    return result


def shares_by_stage(curves: Mapping[str, Series], head: str = "kept") -> dict[int, dict[str, Series]]:
    """The shares kept, `<head>/<stage>/<what>`, sorted by stage."""
    stages: dict[int, dict[str, Series]] = {}
    for name, curve in _only(curves, head).items():
        stage, _, what = name.partition("/")
        if stage.isdigit():
            stages.setdefault(int(stage), {})[what] = curve
    return dict(sorted(stages.items()))


def _only(curves: Mapping[str, Series], head: str) -> dict[str, Series]:
    return {name[len(head) + 1 :]: curve for name, curve in curves.items() if name.startswith(f"{head}/")}


def _draw_loss(left: Axes, steps: Sequence[Row], validations: Sequence[Row]) -> None:
    at, loss = series(steps, "loss")
    left.plot(*thin((at, loss)), color=_GREY, lw=0.8, label="loss")
    window = max(1, len(loss) // 50)
    left.plot(*thin((at, running_mean(loss, window))), color=_BLUE, lw=1.5, label=f"mean of {window}")
    left.set(xlabel="step", ylabel="training loss")
    right = left.twinx()
    right.set(ylabel="validation Dice", ylim=(0, 1))
    flat = [{"step": row["step"], **row["dice"]} for row in validations]
    for number, name in enumerate(validations[-1]["dice"] if validations else ()):
        right.plot(*thin(series(flat, name)), **_look(number), lw=1.0, label=name)
    if validations:
        right.plot(*thin(series(validations, "mean_dice")), "k-o", ms=3, lw=2, label="mean Dice")
    left.legend(fontsize=7, loc="upper right", bbox_to_anchor=(-0.06, 1.0))
    if validations:
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.08, 0.5))


def _draw_rate(axes: Axes, steps: Sequence[Row]) -> None:
    axes.plot(*thin(series(steps, "lr")), color=_BLUE)
    axes.set(xlabel="step", ylabel="learning rate")
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))


def _draw_speed(left: Axes, steps: Sequence[Row]) -> None:
    at, speed = series(steps, "crops_per_second")
    name = "crops per second"
    if not len(at):
        at, seconds = series(steps, "seconds")
        speed, name = _divide(np.ones_like(seconds), seconds), "steps per second"
    window = max(1, len(speed) // 50)
    left.plot(*thin((at, running_mean(speed, window))), color=_BLUE)
    left.set(xlabel="step")
    left.set_ylabel(name, color=_BLUE)
    left.set_ylim(bottom=0)
    right = left.twinx()
    at, wait = series(steps, "data_wait_share")
    right.plot(*thin((at, 100 * running_mean(wait, max(1, len(wait) // 50)))), color="C1")
    right.set_ylabel("waiting for data, %", color="C1")
    right.set_ylim(0, 100)


def _draw_shares(
    panels: Sequence[Axes],
    shares: Mapping[int, Mapping[str, Series]],
    evaluated: Mapping[int, Mapping[str, Series]],
) -> None:
    for axes, (stage, curves) in zip(panels, shares.items(), strict=False):
        as_evaluation = evaluated.get(stage, {})
        for number, (name, curve) in enumerate(curves.items()):
            axes.plot(*_smooth(curve), **_look(number), lw=1.2, label=name)
            if name in as_evaluation:
                axes.plot(*_smooth(as_evaluation[name]), **_look(number), lw=0.6, alpha=0.5)
        axes.set(xlabel="step", ylim=(0, 1.02))
        axes.set_title(f"present after pruning stage {stage}", fontsize=9)
        if stage == min(shares):
            axes.set_ylabel("share of patches (thin: as evaluation selects)", fontsize=8)
            axes.legend(fontsize=6, loc="center right", bbox_to_anchor=(-0.3, 0.5))


def _draw_agreement(axes: Axes, curves: Mapping[str, Series]) -> None:
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(*_smooth(curve), **_look(number), lw=1.2, label=f"stage {name}")
    axes.set(xlabel="step", ylim=(0, 1.02))
    axes.set_title("agreement with evaluation", fontsize=9)
    if curves:
        axes.legend(fontsize=6)


def _smooth(curve: Series) -> Series:
    at, values = curve
    return thin((at, running_mean(values, max(1, len(values) // 50))))


def _look(number: int) -> dict[str, Any]:
    """Colour and line style; the colours repeat after ten."""
    return {"color": f"C{number % 10}", "ls": _STYLES[number // 10 % len(_STYLES)]}


def _row_of(part: SubFigure, number: int) -> list[Axes]:
    return list(part.subplots(1, number, squeeze=False)[0])


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    result = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=result, where=counts > 0)
    return result
