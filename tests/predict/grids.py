"""Grids of every orientation that hold one and the same anatomy."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from sparseg.volumes.volume import Volume

AXIS_ORDERS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def stored_as(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """Return the same voxels at the same places in mm, stored in another axis order and direction."""
    array = volume.array.transpose(0, *(1 + axis for axis in order))
    array = array[(slice(None), *(slice(None, None, sign) for sign in signs))]
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, list(order)]
    for axis, sign in enumerate(signs):
        if sign < 0:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis + 1] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(array), affine, volume.source)


def stored_back(array: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Undo `stored_as` for `[H, W, D]`."""
    flipped = array[tuple(slice(None, None, sign) for sign in signs)]
    return flipped.transpose(np.argsort(order))


def turned(volume: Volume, degrees: tuple[float, float, float]) -> Volume:
    """Return the volume rotated in the patient about x, y and z."""
    turn = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(4)
        step[first, first] = step[second, second] = np.cos(angle)
        step[second, first] = np.sin(angle)
        step[first, second] = -np.sin(angle)
        turn = step @ turn
    return Volume(volume.array, turn @ volume.affine, volume.source)
