"""Pictures of one case: labels, tokens and low confidence, each in the same three planes.

They are made of previews, which are thinned: good to see what was found and where, not to measure.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseg.viewer.report_data import Colour
from sparseg.viewer.slices import PLANES, Frame, frame_of, label_centre, sample, to_frame
from sparseg.volumes.geometry import spacing_of, voxel_to_world
from sparseg.volumes.volume import Volume

LOW_CONFIDENCE = 0.6
LOW_COLOUR: Colour = (255, 64, 160)
UNKNOWN_COLOUR: Colour = (230, 230, 230)
# From pruned early to kept: dark to bright, told apart without colour vision, too.
_STAGE_SCALE = np.array([(84, 64, 168), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
_MAX_PIXELS = 384
_FILL, _HEAT, _DIMMED = 0.35, 0.5, 0.35


@dataclass(frozen=True)
class Plane:
    """One picture.

    Attributes:
        name: `axial`, `coronal` or `sagittal`.
        borders: Patient directions at its left, right, bottom and top.
        width_mm: Width of what it shows.
        height_mm: Height; every pixel is a square of the same size in mm.
        png: The file.
    """

    name: str
    borders: str
    width_mm: float
    height_mm: float
    png: bytes


@dataclass(frozen=True)
class _Cut:
    """Where a picture's pixels lie: world mm `[rows, columns, 3]`, first row on top."""

    name: str
    borders: str
    size_mm: tuple[float, float]
    world: np.ndarray


def stage_colours(num_stages: int) -> dict[int, Colour]:
    """Colour of each value of a token map but 0: pruned at stage 1, 2, ..., and kept to the end."""
    places = np.linspace(0, len(_STAGE_SCALE) - 1, num_stages + 1) if num_stages else np.array([3.0])
    scale = np.arange(len(_STAGE_SCALE))
    columns = [np.interp(places, scale, channel) for channel in _STAGE_SCALE.T]
    return {
        number + 1: (round(red), round(green), round(blue))
        for number, (red, green, blue) in enumerate(zip(*columns, strict=True))
    }


def draw_case(
    previews: Mapping[str, Volume], colours: Mapping[int, Colour], num_stages: int
) -> tuple[dict[str, list[Plane]], np.ndarray]:
    """Draw what there is of `labels`, `tokens` and `confidence` over the image.

    Args:
        previews: `image` and others, each `[1,H,W,D]` on a grid of its own.
        colours: Colour by label id.
        num_stages: Pruning stages of the model.

    Returns:
        Kind -> its planes, and the world position `[3]` that all of them go through: the middle of the
        largest structure, or that of the image where nothing was found.
    """
    image = previews["image"]
    centre = picture_centre(image, previews.get("labels"))
    cuts = [_cut(frame_of(image), plane, centre, image) for plane in PLANES]
    painters = {
        "labels": lambda grey, volume, world: _paint_labels(grey, volume, world, colours),
        "tokens": lambda grey, volume, world: _paint_tokens(grey, volume, world, stage_colours(num_stages)),
        "confidence": _paint_low_confidence,
    }
    greys = [_grey(image, cut.world) for cut in cuts]
    pictures = {
        kind: [
            Plane(cut.name, cut.borders, *cut.size_mm, _png(paint(grey, previews[kind], cut.world)))
            for cut, grey in zip(cuts, greys, strict=True)
        ]
        for kind, paint in painters.items()
        if kind in previews
    }
    return pictures, centre


def picture_centre(image: Volume, labels: Volume | None) -> np.ndarray:
    """World position `[3]` through which the planes go."""
    if labels is not None:
        counts = np.bincount(labels.array.ravel(order="K"))
        counts[0] = 0
        if counts.any():
            largest = Volume((labels.array == counts.argmax()).astype(np.uint8), labels.affine)
            found = label_centre([largest])
            if found is not None:
                return found
    return voxel_to_world(image.affine, [(size - 1) / 2 for size in image.shape])


def _cut(frame: Frame, plane: tuple[str, int, int, int, str], centre: np.ndarray, image: Volume) -> _Cut:
    name, axis, across, up, borders = plane
    size = frame.high - frame.low
    edge = max(size[across], size[up])
    step = float(max(edge / _MAX_PIXELS, spacing_of(image.affine).min() / 2))
    u, v = (np.arange(frame.low[one] + step / 2, frame.high[one], step) for one in (across, up))
    # Rows of a picture run downwards, and the patient's right is on the left.
    v = v[::-1]
    if borders[0] == "R":
        u = u[::-1]
    points = np.empty((len(v), len(u), 3))
    point = np.clip(to_frame(frame, centre), frame.low + 1e-3, frame.high - 1e-3)
    points[..., axis], points[..., across], points[..., up] = point[axis], u[None, :], v[:, None]
    size_mm = (float(size[across]), float(size[up]))
    return _Cut(name, borders, size_mm, voxel_to_world(frame.affine, points))


def _grey(image: Volume, world: np.ndarray) -> np.ndarray:
    """Linear between voxels, so that thinned images look as smooth as they were: `[rows, columns, 3]`."""
    from scipy.ndimage import map_coordinates

    index = voxel_to_world(np.linalg.inv(image.affine), world)
    grid = image.array[0].astype(np.float32)
    values = map_coordinates(grid, np.moveaxis(index, -1, 0), order=1, mode="nearest")
    return np.repeat(np.clip(values, 0, 255)[..., None], 3, axis=-1)


def _paint_labels(
    grey: np.ndarray, labels: Volume, world: np.ndarray, colours: Mapping[int, Colour]
) -> np.ndarray:
    """Fill each structure lightly and draw its border."""
    ids = _values(labels, world)
    picture = grey.copy()
    border = _is_border(ids)
    for value in np.unique(ids[ids > 0]).tolist():
        colour = np.array(colours.get(value, UNKNOWN_COLOUR), dtype=np.float32)
        here = ids == value
        picture[here] += _FILL * (colour - picture[here])
        picture[here & border] = colour
    return picture


def _paint_tokens(
    grey: np.ndarray, tokens: Volume, world: np.ndarray, colours: Mapping[int, Colour]
) -> np.ndarray:
    """Colour each patch by how far its token came; where no window ran the image is dimmed."""
    depth = _values(tokens, world)
    picture = grey * np.where(depth == 0, _DIMMED, 1.0)[..., None]
    for value, colour in colours.items():
        here = depth == value
        picture[here] += _HEAT * (np.array(colour, dtype=np.float32) - picture[here])
    # Borders of patches, so that neighbours of one kind can be counted.
    picture[_is_border(depth)] *= 0.8
    return picture


def _paint_low_confidence(grey: np.ndarray, confidence: Volume, world: np.ndarray) -> np.ndarray:
    """Colour where the decision had a probability below `LOW_CONFIDENCE`, the more the lower."""
    values, within = sample(confidence, world)
    chance = np.where(within, values, 255) / np.float32(255)
    low = chance < LOW_CONFIDENCE
    picture = grey.copy()
    strength = 0.45 + 0.5 * (1 - chance[low] / LOW_CONFIDENCE)
    picture[low] += strength[:, None] * (np.array(LOW_COLOUR, dtype=np.float32) - picture[low])
    return picture


def _values(volume: Volume, world: np.ndarray) -> np.ndarray:
    """Ids `[rows, columns]`; 0 outside the volume."""
    values, within = sample(volume, world)
    return np.where(within, values, 0)


def _is_border(ids: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour of another value."""
    border = np.zeros(ids.shape, dtype=bool)
    for axis in (0, 1):
        differs = np.diff(ids.astype(np.int64), axis=axis) != 0
        low, high = [slice(None)] * 2, [slice(None)] * 2
        low[axis], high[axis] = slice(0, -1), slice(1, None)
        border[tuple(low)] |= differs
        border[tuple(high)] |= differs
    return border


def _png(picture: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    file = io.BytesIO()
    # A picture must not differ because another version of a library drew it.
    metadata: Any = {"Software": None}
    imsave(file, np.clip(picture, 0, 255).astype(np.uint8), format="png", metadata=metadata)
    return file.getvalue()
