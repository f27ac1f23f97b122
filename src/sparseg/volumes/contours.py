"""Outlines of a mask in one plane: polygons whose inside holds exactly the mask's voxel centres."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import contourpy
import numpy as np

_OFF_CENTRE = 0.25
# Towards lower and higher first, lower and higher second coordinates.
_DIRECTIONS = tuple(
    np.array(turn, dtype=float)
    for turn in (((1, 0), (0, 1)), ((-1, 0), (0, 1)), ((0, 1), (1, 0)), ((0, -1), (-1, 0)))
)


def trace_mask(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outline of every component of a mask, its holes joined to it by channels without width.

    Outlines run at level 0.5, half-way between centres inside and outside, so that no centre comes nearer to
    them than a quarter of a voxel. They neither cross nor touch each other, so that all rules by which
    programs fill contours (even-odd, winding number, union of all) give the same voxels. An outline cuts the
    outer corners of its voxels: a component of n voxels with h holes has an area of n - (1 - h) / 2.

    Args:
        mask: bool `[A, B]`; what lies beyond its border counts as outside.

    Returns:
        Polygons `[N, 2]` in voxels (first axis, second axis), the last point joined to the first; counter-
        clockwise where the second axis points up.
    """
    used = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in range(2)]
    if not used[0].size:
        return []
    first = np.array([places[0] for places in used])
    box = tuple(slice(places[0], places[-1] + 1) for places in used)
    around = np.pad(mask[box], 1).astype(np.float64)
    generator = contourpy.contour_generator(z=around.T, name="serial", fill_type="OuterOffset")
    polygons = []
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        rings = [_corners(points[a : b - 1]) for a, b in pairwise(offsets)]
        polygons.append(_join(rings) + (first - 1))
    return polygons


def _corners(ring: np.ndarray) -> np.ndarray:
    """Leave out points on the straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    kept: np.ndarray = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return kept


def _join(rings: list[np.ndarray]) -> np.ndarray:
    """Cut a channel from every hole to the ring next to it, all in the direction that makes them shortest."""
    if len(rings) == 1:
        return rings[0]
    found = []
    for turn in _DIRECTIONS:
        turned = [ring @ turn for ring in rings]
        channels = _channels(turned)
        length = sum(channel.start - channel.end for channel in channels)
        found.append((length, turned, channels, turn))
    _, turned, channels, turn = min(found, key=lambda item: item[0])
    joined: np.ndarray = _walk(turned, channels) @ turn.T
    return joined


def _walk(rings: list[np.ndarray], channels: list[_Channel]) -> np.ndarray:
    """Go along the first ring, with a detour through each channel and round its hole.

    What a channel leads to reaches further out than its hole does, so that all channels together are a tree
    whose root is the first ring.
    """
    children: dict[int, list[_Channel]] = defaultdict(list)
    starts = [0] * len(rings)
    for channel in channels:
        children[channel.parent].append(channel)
        starts[channel.hole] = channel.hole_edge + 1
    pieces = []
    # A stack, as detours have detours.
    todo: list[_Channel | np.ndarray] = _pieces(rings[0], 0, children[0])[::-1]
    while todo:
        item = todo.pop()
        if isinstance(item, np.ndarray):
            pieces.append(item)
            continue
        way = np.array([[item.end, item.line], [item.start, item.line]])
        around = _pieces(rings[item.hole], starts[item.hole], children[item.hole])
        todo += [way[::-1], *around[::-1], way]
    return np.concatenate(pieces)


@dataclass(frozen=True)
class _Channel:
    """A way along the first axis from `end` on an edge of the ring `parent` to `start` on one of `hole`."""

    parent: int
    parent_edge: int
    along: float
    end: float
    hole: int
    hole_edge: int
    start: float
    line: float


def _pieces(ring: np.ndarray, first: int, channels: list[_Channel]) -> list[_Channel | np.ndarray]:
    """Cut a ring, from its corner `first` round to the one before, where channels begin."""
    found: list[_Channel | np.ndarray] = []
    size, done = len(ring), 0
    turned = np.roll(ring, -first, axis=0)
    placed = [((channel.parent_edge - first) % size, channel.along, channel) for channel in channels]
    for edge, _, channel in sorted(placed, key=lambda item: item[:2]):
        found += [turned[done : edge + 1], channel]
        done = edge + 1
    return [*found, turned[done:]]


def _channels(rings: list[np.ndarray]) -> list[_Channel]:
    """One channel, towards lower first coordinates, for each ring but the first.

    It starts beside the hole's outermost point, a quarter of a voxel off that point's line: there it meets
    neither centres nor corners.
    """
    ring, edge, row, place, upward = _crossings(rings)
    outermost = np.array([hole[hole[:, 0] == hole[:, 0].min(), 1].min() for hole in rings])
    candidates = np.flatnonzero(row == outermost[ring])
    holes, first = np.unique(ring[candidates], return_index=True)
    channels = []
    for hole, here in zip(holes.tolist(), candidates[first].tolist(), strict=True):
        if hole == 0:
            continue
        next_to = here - 1
        line = float(row[here]) + _OFF_CENTRE
        channels.append(
            _Channel(
                parent=int(ring[next_to]),
                parent_edge=int(edge[next_to]),
                along=line if upward[next_to] else -line,
                end=float(place[next_to]),
                hole=hole,
                hole_edge=int(edge[here]),
                start=float(place[here]),
                line=line,
            )
        )
    return channels


def _crossings(rings: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Where edges cross the lines along the first axis that run beside the rows of centres.

    Returns:
        In the order of row and place: number of the ring, of its edge (which starts at the corner of that
        number), row, place along the line, and whether the edge leads to higher rows. Edges run along an axis
        or at 45 degrees, so that the places are exact.
    """
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    sizes = [len(ring) for ring in rings]
    number, edge = np.repeat(np.arange(len(rings)), sizes), np.concatenate([np.arange(n) for n in sizes])
    low = np.ceil(np.minimum(start[:, 1], end[:, 1]) - _OFF_CENTRE)
    count = (np.ceil(np.maximum(start[:, 1], end[:, 1]) - _OFF_CENTRE) - low).astype(int)
    which = np.repeat(np.arange(len(start)), count)
    row = low[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    step = (end - start)[which]
    place = start[which, 0] + (row + _OFF_CENTRE - start[which, 1]) * step[:, 0] / step[:, 1]
    order = np.lexsort((place, row))
    which = which[order]
    return number[which], edge[which], row[order], place[order], step[order, 1] > 0
