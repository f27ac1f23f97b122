"""Three planes through a point, every volume sampled at its own place in the patient.

Nothing is assumed about grids: image and labels are looked up through world millimetres, so a label that is
shifted, flipped or stored otherwise appears exactly where its own header puts it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sparseg.datasets.nonfinite import NONFINITE_MARK
from sparseg.preprocessing.orientation import ras_axes, reorient_affine
from sparseg.volumes.geometry import grid_corners, spacing_of, voxel_to_world
from sparseg.volumes.volume import Volume

# Plane, the frame axis it cuts, those that run across and up, and its borders left, right, bottom, top:
# as radiologists look at a patient, from the feet and from the front.
PLANES = (("axial", 2, 0, 1, "RLPA"), ("coronal", 1, 0, 2, "RLIS"), ("sagittal", 0, 1, 2, "PAIS"))
_MAX_PIXELS = 320
# Labels off the image may widen the picture by this share of it on each side.
_MAX_WIDER = 1.5
_MAX_OUTLINES = 40
_LEGEND_COLUMNS, _LEGEND_LETTERS = 5, 24
_OUTSIDE, _NONFINITE = (0.10, 0.12, 0.20), (1.0, 0.0, 1.0)
_WIDTH_INCHES, _MAX_ROW_INCHES, _DPI = 9.6, 4.0, 80
_SAMPLE = 200_000
_BORDER_PLACES = (
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.02, "center", "bottom"),
    (0.5, 0.98, "center", "top"),
)


@dataclass(frozen=True)
class Frame:
    """Orthogonal millimetre axes nearest to right, anterior and superior, along a volume's own axes.

    Attributes:
        affine: `[4,4]`, frame mm -> world mm.
        low: Frame coordinates `[3]` of the outer corner of the volume's grid.
        high: The opposite corner.
    """

    affine: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Row:
    """One row of three planes.

    Attributes:
        title: What is shown.
        image: `[C,H,W,D]`, its first channel is shown; None shows labels alone.
        labels: `[1,H,W,D]` ids, each on a grid of its own.
    """

    title: str
    image: Volume | None
    labels: Sequence[Volume] = ()


def frame_of(volume: Volume) -> Frame:
    """The frame of a volume's grid."""
    permutation, flips = ras_axes(volume.affine)
    affine = reorient_affine(volume.affine, volume.shape, permutation, flips)
    edges = spacing_of(affine)
    corners = grid_corners([volume.shape[axis] for axis in permutation]) * edges
    return Frame(affine @ np.diag([*(1 / edges), 1.0]), corners.min(axis=0), corners.max(axis=0))


def to_frame(frame: Frame, world: np.ndarray | Sequence[float]) -> np.ndarray:
    """Frame coordinates `[...,3]` of world positions `[...,3]`."""
    return voxel_to_world(np.linalg.inv(frame.affine), world)


def labelled_box(labels: Volume) -> np.ndarray | None:
    """World positions `[8,3]` of the outer corners around everything labelled; None if nothing is."""
    low, size = [], []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(labels.array[0].any(axis=others))
        if not where.size:
            return None
        low.append(int(where[0]))
        size.append(int(where[-1] - where[0]) + 1)
    return voxel_to_world(labels.affine, grid_corners(size) + np.array(low))


def labelled_points(labels: Sequence[Volume]) -> np.ndarray:
    """World positions `[n,3]` of labelled voxels, at most some 200,000 of each volume."""
    found = []
    for label in labels:
        ids = label.array[0]
        # In the order in memory, or numpy would copy the volume first.
        order: Literal["F", "C"] = "F" if ids.flags.f_contiguous else "C"
        flat = np.flatnonzero(ids.ravel(order))
        chosen = np.unravel_index(flat[:: max(1, flat.size // _SAMPLE)], label.shape, order)
        found.append(voxel_to_world(label.affine, np.stack(chosen, axis=-1)))
    return np.concatenate(found) if found else np.empty((0, 3))


def label_centre(labels: Sequence[Volume]) -> np.ndarray | None:
    """World position `[3]` of the labelled voxel nearest to the mean of all; None if nothing is labelled.

    The mean itself may lie between two structures, where no plane would show either.
    """
    points = labelled_points(labels)
    if not points.size:
        return None
    nearest: np.ndarray = points[np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()]
    return nearest


def share_outside(image: Volume, points: np.ndarray) -> float:
    """Share of world positions `[n,3]` that lie outside an image; 0 for none."""
    voxels = voxel_to_world(np.linalg.inv(image.affine), points)
    outside = ((voxels < -0.5) | (voxels > np.array(image.shape) - 0.5)).any(axis=1)
    return float(outside.mean()) if len(points) else 0.0


def sample(volume: Volume, world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First channel `[...]` at the voxels that hold world positions `[...,3]`, and which lie inside."""
    index = np.floor(voxel_to_world(np.linalg.inv(volume.affine), world) + 0.5).astype(np.int64)
    inside = np.logical_and(index >= 0, index < np.array(volume.shape)).all(axis=-1)
    index = np.clip(index, 0, np.array(volume.shape) - 1)
    return volume.array[0][index[..., 0], index[..., 1], index[..., 2]], np.asarray(inside)


def window_of(image: Volume) -> tuple[float, float]:
    """The 1st and 99th percentile of the finite voxels; never equal."""
    values = image.array[0].reshape(-1, order="A")
    values = values[:: max(1, values.size // _SAMPLE)]
    values = values[values < NONFINITE_MARK]
    if not values.size:
        return (0.0, 1.0)
    low, high = np.percentile(values.astype(np.float64), [1, 99])
    if high <= low:
        # Few voxels differ from the rest: show them at least.
        low, high = float(values.min()), float(values.max())
    return (float(low), float(high)) if high > low else (float(low) - 1, float(high) + 1)


def draw_planes(
    rows: Sequence[Row], centre: np.ndarray, names: Mapping[int, str], *, cross: bool = True
) -> bytes:
    """Draw rows of three planes through one world position, all in the frame of the first volume.

    Args:
        rows: At least one, the first with an image or labels.
        centre: World position `[3]` in mm; planes beyond the first volume are moved to its border.
        names: Id -> name, for the legend.
        cross: Mark the position.

    Returns:
        A PNG; every millimetre is equally long in all planes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = next(volume for row in rows for volume in (row.image, *row.labels) if volume is not None)
    frame = frame_of(first)
    low, high = _extent(frame, rows)
    point = to_frame(frame, centre)
    # Just within, or the plane would fall between the last voxel and nothing.
    where = np.clip(point, frame.low + 1e-3, frame.high - 1e-3)
    size = high - low
    widths = [float(size[across]) for _, _, across, _, _ in PLANES]
    tallest = max(float(size[up]) for *_, up, _ in PLANES)
    inch = min((_WIDTH_INCHES - 0.4) / sum(widths), _MAX_ROW_INCHES / tallest)
    row_height = tallest * inch + 0.3
    present = _present(rows)
    legend_height = 0.1 + 0.2 * -(-len(present) // _LEGEND_COLUMNS)
    figure = Figure(figsize=(_WIDTH_INCHES, row_height * len(rows) + legend_height), facecolor="black")
    FigureCanvasAgg(figure)
    colours = {value: _colour(number) for number, value in enumerate(present)}
    for number, row in enumerate(rows):
        left = (_WIDTH_INCHES - sum(widths) * inch - 0.2) / 2
        top = row_height * (len(rows) - number) + legend_height - 0.25
        for plane, width in zip(PLANES, widths, strict=True):
            height = float(size[plane[3]]) * inch
            box = (left, top - height, width * inch, height)
            axes = figure.add_axes(_share(box, figure.get_size_inches()))
            _draw_plane(axes, plane, row, frame, (low, high), where, colours)
            if cross:
                axes.plot(*(point[list(plane[2:4])]), "+", color="red", markersize=13, markeredgewidth=1.3)
            _finish(axes, plane, row.title, (low, high))
            left += width * inch + 0.1
    _legend(figure, colours, names)
    file = io.BytesIO()
    figure.savefig(file, dpi=_DPI, format="png", metadata={"Software": None})
    return file.getvalue()


def _present(rows: Sequence[Row]) -> list[int]:
    """Ids other than 0 that the labels hold, the first of too many."""
    volumes = {id(label.array): label for row in rows for label in row.labels}
    ids = {int(value) for label in volumes.values() for value in np.unique(label.array[label.array != 0])}
    return sorted(ids)[:_MAX_OUTLINES]


def _share(box: Sequence[float], size: np.ndarray) -> tuple[float, float, float, float]:
    return (box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1])


def _extent(frame: Frame, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Frame coordinates of the picture's corners: the first volume, wider where labels or images leave it."""
    low, high = frame.low.copy(), frame.high.copy()
    for row in rows:
        corners = [labelled_box(label) for label in row.labels]
        if row.image is not None:
            corners.append(voxel_to_world(row.image.affine, grid_corners(row.image.shape)))
        for box in corners:
            if box is not None:
                inside = to_frame(frame, box)
                low, high = np.minimum(low, inside.min(axis=0)), np.maximum(high, inside.max(axis=0))
    spare = _MAX_WIDER * (frame.high - frame.low)
    return np.maximum(low, frame.low - spare), np.minimum(high, frame.high + spare)


def _draw_plane(
    axes: Any,
    plane: tuple[str, int, int, int, str],
    row: Row,
    frame: Frame,
    corners: tuple[np.ndarray, np.ndarray],
    where: np.ndarray,
    colours: Mapping[int, Any],
) -> None:
    _, cut, across, up, _ = plane
    low, high = corners
    step = max(high[across] - low[across], high[up] - low[up]) / _MAX_PIXELS
    u, v = (np.arange(low[axis] + step / 2, high[axis], step) for axis in (across, up))
    points = np.empty((len(v), len(u), 3))
    points[..., cut], points[..., across], points[..., up] = where[cut], u[None, :], v[:, None]
    world = voxel_to_world(frame.affine, points)
    picture = np.broadcast_to(np.array(_OUTSIDE), (*world.shape[:2], 3))
    if row.image is not None:
        picture = _gray(row.image, world)
    extent = (u[0] - step / 2, u[-1] + step / 2, v[0] - step / 2, v[-1] + step / 2)
    axes.imshow(picture, extent=extent, origin="lower", interpolation="nearest")
    for label in row.labels:
        values, inside = sample(label, world)
        ids = np.where(inside, values, 0)
        for value in np.unique(ids).tolist():
            if value in colours:
                # Padded, so that outlines close at the picture's border.
                edges = (np.r_[axis[0] - step, axis, axis[-1] + step] for axis in (u, v))
                axes.contour(
                    *edges, np.pad(ids == value, 1), levels=[0.5], colors=[colours[value]], linewidths=1.4
                )


def _gray(image: Volume, world: np.ndarray) -> np.ndarray:
    """Red, green, blue `[...,3]`, with colours where the image is not finite and where it is not at all."""
    values, inside = sample(image, world)
    low, high = window_of(image)
    bad = values >= NONFINITE_MARK
    level = np.clip((np.where(bad, low, values).astype(np.float64) - low) / (high - low), 0, 1)
    picture = np.repeat(level[..., None], 3, axis=-1)
    picture[bad] = _NONFINITE
    picture[~inside] = _OUTSIDE
    return picture


def _finish(axes: Any, plane: tuple[str, ...] | Any, title: str, corners: tuple[Any, Any]) -> None:
    from matplotlib.patheffects import withStroke

    name, _, across, up, borders = plane
    low, high = corners
    axes.set(xticks=[], yticks=[], xlim=(low[across], high[across]), ylim=(low[up], high[up]))
    if borders[0] == "R":
        axes.invert_xaxis()
    for spine in axes.spines.values():
        spine.set_visible(False)
    for letter, (x, y, horizontal, vertical) in zip(borders, _BORDER_PLACES, strict=True):
        text = axes.text(x, y, letter, transform=axes.transAxes, ha=horizontal, va=vertical)
        text.set(color="yellow", fontsize=10, path_effects=[withStroke(linewidth=2, foreground="black")])
    # Names are the user's: a dollar sign in one is text, not the begin of a formula.
    axes.set_title(f"{title}, {name}" if title else name, fontsize=8, color="white", pad=3, parse_math=False)


def _legend(figure: Any, colours: Mapping[int, Any], names: Mapping[int, str]) -> None:
    from matplotlib.lines import Line2D

    if not colours:
        return
    handles = [
        Line2D([], [], color=colour, lw=2.5, label=f"{value} {names.get(value, '')}"[:_LEGEND_LETTERS])
        for value, colour in colours.items()
    ]
    columns = min(_LEGEND_COLUMNS, len(handles))
    legend = figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set(color="white", parse_math=False)


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    # Ten strong colours, those most unlike a gray picture first, then their light sisters.
    hue = (1, 8, 9, 2, 6, 4, 0, 3, 5, 7)[number % 10]
    return colormaps["tab20"](2 * hue + number // 10 % 2)
