"""The curve as a picture: Dice against seconds per window."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparseg.predict.calibration import Calibration
from sparseg.volumes.atomic import write_bytes_atomically

_BLUE, _RED = "#1f4e9c", "#c0392b"


def curve_figure(calibration: Calibration) -> Figure:
    """One point per setting, with its noise in both directions; the model's own setting is marked."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = sorted(calibration.points, key=lambda point: point.seconds_per_window)
    axes.plot(
        [point.seconds_per_window for point in points], [point.dice for point in points], color=_BLUE, lw=1
    )
    for number, point in enumerate(points):
        x, y = point.seconds_per_window, point.dice
        axes.errorbar(
            x,
            y,
            xerr=[[max(0.0, x - point.seconds_p10)], [max(0.0, point.seconds_p90 - x)]],
            yerr=2 * (point.dice_noise or 0.0),
            fmt="s" if point.own else "o",
            color=_RED if point.own else _BLUE,
            ecolor="#b7c4dc",
            capsize=2,
            zorder=3,
            label="setting of the model" if point.own else None,
        )
        axes.annotate(
            point.name, (x, y), textcoords="offset points", xytext=(5, 6 if number % 2 else -13), fontsize=9
        )
    machine = calibration.machine
    axes.set_xlabel(f"seconds per window ({machine.device}, {machine.threads} thread(s); bars: p10 to p90)")
    axes.set_ylabel("mean Dice (bars: 2 standard errors\nof the difference to the own setting)")
    kind = f"{calibration.num_cases} {calibration.cases} case(s)"
    axes.set_title(f"Keep ratio: quality against time, {kind}, {calibration.date}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def draw_curve(path: Path, calibration: Calibration) -> None:
    """Write the picture as PNG, in one step.

    Raises:
        VolumeError: the folder cannot be written to.
    """
    buffer = io.BytesIO()
    curve_figure(calibration).savefig(buffer, format="png", dpi=120)
    write_bytes_atomically(path, buffer.getvalue())
