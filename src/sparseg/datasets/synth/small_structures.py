"""Cases with structures of a few voxels in a textured background, for the standing task `small`.

Nodules (spheres) and vessels (tubes) are labelled. What looks alike at a voxel is not: blobs (spheres that
are too large), sheets (as thin as a vessel, but broad), specks (too small) and strings of beads (each bead is
a nodule, but nodules stand alone). So brightness does not tell them apart, only shape and surroundings of
some eight voxels do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparseg.datasets.synth.deform import smooth_noise
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "nodule", 2: "vessel"}
CHANNELS = ("MR",)

EDGE = 72
COUNTS = {"nodule": 12, "vessel": 6, "blob": 3, "sheet": 3, "beads": 3, "speck": 12}
_BASE, _CONTRAST, _CONTRAST_SPREAD = 400.0, 300.0, 0.2
# Distance of control points in voxels -> standard deviation.
_TEXTURE = {3.0: 40.0, 12.0: 25.0}
_NOISE = 25.0
_GAP = 3
_BORDER = 4
_TRIES = 200


def draw_small_structures(index: int, *, seed: int = 0, edge: int = EDGE) -> tuple[Volume, Volume]:
    """Make case number `index`; equal arguments give equal voxels.

    Args:
        index: Number of the case, from 0.
        seed: Seed of the whole set.
        edge: Voxels per axis, of 1 mm.

    Returns:
        Image `[1,H,W,D]` int16 and labels `[1,H,W,D]` int32.
    """
    rng = np.random.default_rng((seed, index))
    shape = (edge, edge, edge)
    labels = np.zeros(shape, np.int32)
    image = np.full(shape, _BASE, np.float32)
    for control, deviation in _TEXTURE.items():
        image += np.float32(deviation) * smooth_noise(rng, shape, control, shape)
    bright, taken = np.zeros(shape, np.float32), np.zeros(shape, bool)
    names = {name: number for number, name in LABELS.items() if number}
    # The large first: the small ones still find room between them.
    for kind in ("blob", "sheet", "beads", "vessel", "nodule", "speck"):
        wanted = round(COUNTS[kind] * (edge / EDGE) ** 3)
        for part in _place(kind, max(1, wanted), taken, rng):
            contrast = _CONTRAST * (1 + _CONTRAST_SPREAD * rng.uniform(-1, 1))
            # Half of a voxel on either side of the surface shares in the brightness: partial volume.
            np.maximum(bright, contrast * np.clip(0.5 - part, 0, 1), out=bright)
            if kind in names:
                labels[part <= 0] = names[kind]
    image += bright + np.float32(_NOISE) * rng.standard_normal(shape, dtype=np.float32)
    stored = np.rint(np.clip(image, 0, 4095)).astype(np.int16)
    return Volume(stored[None], np.eye(4), "synthetic"), Volume(labels[None], np.eye(4), "synthetic")


def _place(kind: str, count: int, taken: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield signed distances `[H,W,D]` in voxels, below 0 inside, of structures that keep apart.

    Marks their voxels, and a gap around them, in `taken`. A structure that finds no room is left out.
    """
    for _ in range(count):
        for _ in range(_TRIES):
            distance = _distance(kind, taken.shape[0], rng)
            if not (taken & (distance <= _GAP)).any():
                taken |= distance <= 0
                yield distance
                break


def _distance(kind: str, edge: int, rng: np.random.Generator) -> np.ndarray:
    """Signed distance `[H,W,D]` to one structure of random place, direction and size."""
    centre, along = rng.uniform(_BORDER, edge - 1 - _BORDER, 3), _direction(rng)
    offset = np.indices((edge, edge, edge), dtype=np.float32) - centre.reshape(3, 1, 1, 1).astype(np.float32)
    if kind == "vessel":
        return _bent_tube(offset, along, _direction(rng), rng)
    if kind == "sheet":
        half, radius = rng.uniform(2.0, 3.0) / 2, rng.uniform(6.0, 9.0)
        height = np.tensordot(along, offset, 1)
        across = np.sqrt(np.maximum((offset**2).sum(axis=0) - height**2, 0))
        sheet: np.ndarray = np.maximum(np.abs(height) - half, across - radius)
        return sheet
    if kind == "beads":
        radius, count = rng.uniform(3.0, 5.0) / 2, int(rng.integers(3, 5))
        places = (np.arange(count) - (count - 1) / 2) * rng.uniform(6.0, 7.5)
        beads: np.ndarray = np.min([_sphere(offset - _column(p * along), radius) for p in places], axis=0)
        return beads
    low, high = {"nodule": (3.0, 6.0), "blob": (10.0, 15.0), "speck": (0.8, 1.6)}[kind]
    return _sphere(offset, rng.uniform(low, high) / 2)


def _sphere(offset: np.ndarray, radius: float) -> np.ndarray:
    distance: np.ndarray = np.sqrt((offset**2).sum(axis=0)) - np.float32(radius)
    return distance


def _bent_tube(
    offset: np.ndarray, along: np.ndarray, aside: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Two straight pieces that meet at the centre at an obtuse angle, with round ends."""
    radius, length = rng.uniform(2.0, 3.5) / 2, rng.uniform(10.0, 18.0)
    onward = along + 0.3 * aside
    ends = (-along * length / 2, onward / np.linalg.norm(onward) * length / 2)
    tube: np.ndarray = np.min([_to_segment(offset, end) for end in ends], axis=0) - np.float32(radius)
    return tube


def _to_segment(offset: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance `[H,W,D]` to the segment from the origin to `end`."""
    share = np.clip(np.tensordot(end, offset, 1) / (end @ end), 0, 1)
    distance: np.ndarray = np.sqrt(((offset - share * _column(end)) ** 2).sum(axis=0))
    return distance


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.standard_normal(3)
    unit: np.ndarray = vector / np.linalg.norm(vector)
    return unit


def _column(vector: np.ndarray) -> np.ndarray:
    column: np.ndarray = vector.reshape(3, 1, 1, 1).astype(np.float32)
    return column
