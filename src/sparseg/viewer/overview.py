"""Overview picture: slices in three planes with the outlines of a label map and, beside it.

Of a reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.preprocessing.orientation import ras_axes, reorient
from sparseg.volumes.geometry import require_same_grid
from sparseg.volumes.volume import Volume

# Axis that a plane cuts, and the names of its borders (left, right, bottom, top) in a RAS array shown
# upright.
_PLANES = (("axial", 2, "LRPA"), ("coronal", 1, "LRIS"), ("sagittal", 0, "PAIS"))


def draw_overview(
    path: Path,
    image: Volume,
    columns: Mapping[str, Volume],
    names: Mapping[int, str],
    *,
    window: tuple[float, float],
    num_axial: int = 3,
) -> None:
    """Write a PNG: one column per label map, `num_axial` axial slices and one coronal and sagittal slice
    each.

    The patient's left is on the left of the picture, as the array axes run (RAS); the letters say so.

    Args:
        path: PNG to write.
        image: `[C, H, W, D]`; its first channel is shown.
        columns: Title -> label map `[1, H, W, D]` on the image's grid.
        names: Id -> name of the labels.
        window: Intensities shown as black and white.
        num_axial: Axial slices, spread over the extent of the labels.

    Raises:
        GeometryError: a label map on another grid than the image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    for labels in columns.values():
        require_same_grid(image, labels, what="image and labels")
    permutation, flips = ras_axes(image.affine)
    picture = reorient(image.array[:1], permutation, flips)[0]
    maps = [reorient(labels.array, permutation, flips)[0] for labels in columns.values()]
    spacing = [image.spacing[axis] for axis in permutation]
    slices = _choose_slices(maps, num_axial)
    figure = Figure(figsize=(5.2 * len(maps) + 2.2, 3.4 * len(slices)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(slices), len(maps), squeeze=False)
    colours = _colours(names)
    for row, (plane, axis, number, borders) in enumerate(slices):
        for column, (title, ids) in enumerate(zip(columns, maps, strict=True)):
            shown = axes[row][column]
            _draw_slice(shown, picture, ids, colours, plane=(axis, number), spacing=spacing, window=window)
            shown.set_title(f"{title}, {plane} {number}" if row == 0 else f"{plane} {number}", fontsize=9)
            shown.set_xlabel(f"{borders[0]} - {borders[1]}", fontsize=7)
            shown.set_ylabel(f"{borders[2]} - {borders[3]}", fontsize=7)
    present = sorted({int(value) for ids in maps for value in np.unique(ids)} - {0})
    handles = [
        Line2D([], [], color=colours[value], lw=3, label=names.get(value, str(value))) for value in present
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    temporary = path.with_name(f".{path.name}.new")
    figure.savefig(temporary, dpi=90, format="png")
    temporary.replace(path)


def _choose_slices(maps: Sequence[np.ndarray], num_axial: int) -> list[tuple[str, int, int, str]]:
    """(plane, axis, slice, border letters).

    Spread over the labels axially, through their middle otherwise.
    """
    anything = np.any([ids > 0 for ids in maps], axis=0)
    chosen = []
    for plane, axis, borders in _PLANES:
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(anything.any(axis=others))
        first, last = (where[0], where[-1]) if len(where) else (0, anything.shape[axis] - 1)
        count = num_axial if plane == "axial" else 1
        shares = (np.arange(count) + 1) / (count + 1)
        numbers = np.unique(np.round(first + shares * (last - first)).astype(int))
        chosen += [(plane, axis, int(number), borders) for number in numbers]
    return chosen


def _draw_slice(
    axes: Any,
    picture: np.ndarray,
    ids: np.ndarray,
    colours: Mapping[int, Any],
    *,
    plane: tuple[int, int],
    spacing: Sequence[float],
    window: tuple[float, float],
) -> None:
    axis, number = plane
    across, up = (other for other in range(3) if other != axis)
    gray = np.take(picture, number, axis=axis).T
    drawn = np.take(ids, number, axis=axis).T
    aspect = spacing[up] / spacing[across]
    axes.imshow(gray, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", aspect=aspect)
    for value in np.unique(drawn):
        if value:
            axes.contour(drawn == value, levels=[0.5], colors=[colours[int(value)]], linewidths=1.0)
    axes.set_xticks([])
    axes.set_yticks([])


def _colours(names: Mapping[int, str]) -> dict[int, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    return {value: palette((2 * value + value // 10) % 20) for value in names}
