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
_PLANES = (("axial", 2, "RLPA"), ("coronal", 1, "RLIS"), ("sagittal", 0, "PAIS"))

_WIDTH = 5.0  # of one column, in inches


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

    Shown as radiologists do: the patient's right is on the left of axial and coronal slices; letters say so.

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
    box = _box(maps)
    extent = [(part.stop - part.start) * edge for part, edge in zip(box, spacing, strict=True)]
    heights = [_WIDTH * extent[_up(axis)] / extent[_across(axis)] for _, axis, _, _ in slices]
    size = (_WIDTH * len(maps) + 2.4, sum(heights) + 0.5 * len(heights))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(slices), len(maps), squeeze=False, height_ratios=heights)
    present = sorted({int(value) for ids in maps for value in np.unique(ids)} - {0})
    colours = _colours(present)
    for row, (plane, axis, number, borders) in enumerate(slices):
        for column, (title, ids) in enumerate(zip(columns, maps, strict=True)):
            shown = axes[row][column]
            here = tuple(slice(number, number + 1) if a == axis else part for a, part in enumerate(box))
            gray, drawn = (array[here].squeeze(axis).T for array in (picture, ids))
            aspect = spacing[_up(axis)] / spacing[_across(axis)]
            shown.imshow(gray, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", aspect=aspect)
            _draw_labels(shown, drawn, colours)
            if borders[0] == "R":
                shown.invert_xaxis()
            shown.set_title(f"{title}, {plane} {number}" if row == 0 else f"{plane} {number}", fontsize=9)
            shown.set_xlabel(f"{borders[0]} - {borders[1]}", fontsize=7)
            shown.set_ylabel(f"{borders[2]} - {borders[3]}", fontsize=7)
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


def _draw_labels(axes: Any, ids: np.ndarray, colours: Mapping[int, Any]) -> None:
    """Fill each label lightly and draw its outline; `ids` as shown, rows upwards."""
    shade = np.zeros((*ids.shape, 4))
    for value in np.unique(ids):
        if value:
            shade[ids == value] = (*colours[int(value)][:3], 0.25)
            # Padded, so that outlines close at the picture's border.
            padded = np.pad(ids == value, 1)
            rows, columns = (np.arange(-1, n + 1) for n in ids.shape)
            axes.contour(columns, rows, padded, levels=[0.5], colors=[colours[int(value)]], linewidths=1.2)
    axes.imshow(shade, origin="lower", aspect=axes.get_aspect(), interpolation="nearest")
    axes.set(xticks=[], yticks=[], xlim=(-0.5, ids.shape[1] - 0.5), ylim=(-0.5, ids.shape[0] - 0.5))


def _box(maps: Sequence[np.ndarray], margin: float = 0.3) -> tuple[slice, slice, slice]:
    """Bounding box of all labels with a margin (share of its size); everything where nothing is labelled."""
    anything = np.any([ids > 0 for ids in maps], axis=0)
    parts = []
    for axis, edge in enumerate(anything.shape):
        where = np.flatnonzero(anything.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = (int(where[0]), int(where[-1])) if len(where) else (0, edge - 1)
        wider = int(margin * (last - first)) + 1
        parts.append(slice(max(0, first - wider), min(edge, last + 1 + wider)))
    return (parts[0], parts[1], parts[2])


def _across(axis: int) -> int:
    """Array axis that runs across the picture of a plane cutting `axis`."""
    return 1 if axis == 0 else 0


def _up(axis: int) -> int:
    """Array axis that runs up the picture of a plane cutting `axis`."""
    return 1 if axis == 2 else 2


def _colours(values: Sequence[int]) -> dict[int, Any]:
    from matplotlib import colormaps

    palette = colormaps["gist_rainbow"]
    # Neighbouring ids get distant hues.
    return {value: palette((value * 0.618034) % 1.0) for value in values}
