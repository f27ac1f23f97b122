"""Two pictures of a comparison: Dice against throughput, and the curves of all trainings."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from sparseg.compare.plan import Comparison
from sparseg.training import log
from sparseg.training.curves import running_mean, series

_MODES = {"training": "training crops/s", "inference": "inference windows/s"}
_MARKERS, _COLOURS, _STYLES = "osD^vP*X", 10, ("-", "--", ":")
_POINTS = 200
_SMOOTH = 25  # a curve shows means of this share of its steps, 1/n
# Where a label may stand, in points from its marker, best first: right, left, above, below, further out.
_PLACES = [
    (x * reach, y * reach)
    for reach in (8, 18, 30, 44)
    for x, y in ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1.2), (0, -1.2))
]

Look = dict[str, dict[str, Any]]
# Name, place and colour of a marker.
Label = tuple[str, float, float, str]


def draw_pareto(results: Mapping[str, Any]) -> bytes:
    """PNG: Dice with its spread over runs against throughput, training and inference side by side."""
    figure = _figure(12, 5.6)
    looks = _looks([row["variant"] for row in results["rows"]])
    panels = figure.subplots(1, 2, sharey=True)
    labels = []
    for axes, (mode, label) in zip(panels, _MODES.items(), strict=True):
        labels.append(_draw_points(axes, mode, results["rows"], looks))
        axes.set(
            xlabel=f"{label} (further right is faster)", ylabel="mean Dice" if mode == "training" else ""
        )
    figure.suptitle(
        f"{results['dataset']}: {_what(results)}; bars: ± standard deviation over runs", fontsize=10
    )
    # The layout decides where markers lie; from here on it must not make room for labels.
    figure.canvas.draw()
    figure.set_layout_engine("none")
    for axes, own in zip(panels, labels, strict=True):
        _place_labels(axes, own)
    return _png(figure)


def draw_curves(found: Comparison) -> bytes:
    """PNG: training loss and validation Dice of every variant, mean and range over its runs."""
    names = list(found.plan.variants)
    looks, by_time = _looks(names), found.plan.budget.kind == "minutes"
    figure = _figure(12, 5.6)
    left, right = figure.subplots(1, 2)
    for name in names:
        logs = [log.read(found.run_folder(run)) for run in found.runs if run.variant == name]
        for axes, kind, key in ((left, "train", "loss"), (right, "validation", "mean_dice")):
            _draw_band(axes, [_curve(rows, kind, key, by_time) for rows in logs], name, looks[name], kind)
    axis = "minutes" if by_time else "step"
    left.set(xlabel=axis, ylabel="training loss (smoothed)")
    right.set(xlabel=axis, ylabel="validation Dice")
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle(f"{found.plan.dataset}: mean over runs, and their range", fontsize=10)
    return _png(figure)


def _draw_points(axes: Axes, mode: str, rows: Sequence[Mapping[str, Any]], looks: Look) -> list[Label]:
    """Markers with bars, and what to write beside them; variants without a Dice or a speed are not there."""
    labels: list[Label] = []
    for row in rows:
        dice, spread = row["quality"]["dice"], row["quality"]["dice_sd"]
        if dice is None or row[mode] is None:
            continue
        look = {key: value for key, value in looks[row["variant"]].items() if key != "ls"}
        at = row[mode]["per_second"]
        axes.errorbar([at], [dice], yerr=[spread or 0.0], ms=7, capsize=3, elinewidth=1, ls="none", **look)
        labels.append((row["variant"], at, dice, look["color"]))
    axes.grid(alpha=0.3)
    axes.margins(y=0.12)
    axes.set_xlim(0, 1.2 * max((x for _, x, _, _ in labels), default=1.0))
    return labels


def _place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Each label at the first place around its marker where it covers no other label or marker."""
    taken = [
        Bbox.from_bounds(x - 6, y - 6, 12, 12)
        for x, y in (axes.transData.transform(label[1:3]) for label in labels)
    ]
    room = axes.get_window_extent()
    for label in labels:
        costs = []
        for place in _PLACES:
            text, box = _write(axes, label, place)
            costs.append(sum(_overlap(box, other) for other in taken) + _outside(box, room))
            text.remove()
            if costs[-1] == 0:
                break
        taken.append(_write(axes, label, _PLACES[int(np.argmin(costs))])[1])


def _write(axes: Axes, label: Label, place: tuple[float, float]) -> tuple[Annotation, Bbox]:
    """A label at a place beside its marker, with a thin line to it; and the box of its words."""
    name, x, y, colour = label
    dx, dy = place
    text = axes.annotate(
        name,
        (x, y),
        (dx, dy),
        textcoords="offset points",
        fontsize=8,
        color=colour,
        ha="left" if dx > 0 else "right" if dx < 0 else "center",
        va="center",
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkB": 3},
    )
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    text.update_positions(renderer)
    return text, Text.get_window_extent(text, renderer)


def _overlap(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share."""
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else float(shared.width * shared.height)


def _outside(box: Bbox, room: Bbox) -> float:
    """Area of a box that is outside of another."""
    return float(box.width * box.height) - _overlap(box, room)


def _draw_band(
    axes: Axes,
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    name: str,
    look: Mapping[str, Any],
    kind: str,
) -> None:
    """Mean of the curves that reach a place, and the range between them."""
    known = [(x, y) for x, y in curves if len(x)]
    if not known:
        return
    places = np.unique(np.concatenate([x for x, _ in known]))
    at = places if kind == "validation" else np.linspace(places[0], places[-1], _POINTS)
    table = np.stack([np.interp(at, x, y, left=np.nan, right=np.nan) for x, y in known])
    keep = np.isfinite(table).any(axis=0)
    at, table = at[keep], table[:, keep]
    style = {"color": look["color"], "ls": look["ls"]}
    if kind == "validation":
        style |= {"marker": look["marker"], "ms": 4}
    axes.plot(at, np.nanmean(table, axis=0), lw=1.4, label=name, **style)
    if len(known) > 1:
        axes.fill_between(
            at, np.nanmin(table, axis=0), np.nanmax(table, axis=0), color=look["color"], alpha=0.08, lw=0
        )


def _curve(
    rows: Sequence[Mapping[str, Any]], kind: str, key: str, by_time: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Places (steps, or minutes of training) and values of a key of a run's log, the loss smoothed."""
    own = [row for row in rows if row["kind"] == kind]
    steps, values = series(own, key)
    if kind == "train":
        values = running_mean(values, max(1, len(values) // _SMOOTH))
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if by_time and len(steps):
        at, seconds = series([row for row in rows if row["kind"] == "train"], "seconds")
        steps = np.interp(steps, at, np.cumsum(np.nan_to_num(seconds)) / 60)
    return steps, values


def _looks(names: Sequence[str]) -> Look:
    """Colour, marker and line style of every variant, the same in all pictures."""
    return {
        name: {
            "color": f"C{number % _COLOURS}",
            "marker": _MARKERS[number % len(_MARKERS)],
            "ls": _STYLES[number // _COLOURS % len(_STYLES)],
        }
        for number, name in enumerate(names)
    }


def _what(results: Mapping[str, Any]) -> str:
    budget = results["budget"]
    return f"{budget['amount']:g} {budget['kind']} each, {len(results['seeds'])} seed(s)"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
