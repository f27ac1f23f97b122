"""Cases in which a mark far away decides what a structure is, for the standing task `far`.

An image is four columns side by side. Each has a mark at one end, bright or dark, and a nodule at the other.
All nodules look alike; one is of the first class where the mark of its own column is bright, else of the
second, as the level of a vertebra or the side of an organ is known from elsewhere. Marks are not labelled.
Nothing within 48 voxels of a nodule tells its class, which is farther than the convolutions of a decoder see,
and nothing that sums up a whole image does, as norms do: whoever finds it has carried it through the encoder
from one place to another.
"""

from __future__ import annotations

import numpy as np

from sparseg.datasets.synth.deform import smooth_noise
from sparseg.shapes import Triple
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "nodule of a bright mark", 2: "nodule of a dark mark"}

SHAPE: Triple = (96, 32, 32)
_COLUMN = 16
_BASE, _CONTRAST, _CONTRAST_SPREAD = 400.0, 300.0, 0.2
_MARK_CONTRAST = {1: 350.0, 2: -350.0}
_MARK_RADIUS, _NODULE_RADIUS = (5.0, 6.0), (2.5, 3.5)
# First axis, from the end with the marks: their centres, centres of the nodules.
_MARK_PLACE, _NODULE_PLACE = (6.0, 8.0), (66.0, 90.0)
# How far a centre lies from the middle of its column.
_ASIDE = {"mark": 1.0, "nodule": 3.0}
_TEXTURE = {3.0: 40.0, 12.0: 25.0}
_NOISE = 25.0


def draw_far_mark(index: int, *, seed: int = 0) -> tuple[Volume, Volume]:
    """Make case number `index`; equal arguments give equal voxels.

    Args:
        index: Number of the case, from 0.
        seed: Seed of the whole set.

    Returns:
        Image `[1,H,W,D]` int16 of `SHAPE`, 1 mm, and labels `[1,H,W,D]` int32.
    """
    rng = np.random.default_rng((seed, index))
    image, labels = np.full(SHAPE, _BASE, np.float32), np.zeros(SHAPE, np.int32)
    for control, deviation in _TEXTURE.items():
        image += np.float32(deviation) * smooth_noise(rng, SHAPE, control, SHAPE)
    columns = [(w, d) for w in range(0, SHAPE[1], _COLUMN) for d in range(0, SHAPE[2], _COLUMN)]
    # Two bright and two dark marks in every image: which is which is all that differs.
    kinds = rng.permutation([1, 2] * (len(columns) // 2))
    for corner, kind in zip(columns, kinds, strict=True):
        mark = _sphere(rng, corner, _ASIDE["mark"], _MARK_PLACE, rng.uniform(*_MARK_RADIUS))
        image += np.float32(_MARK_CONTRAST[int(kind)]) * np.clip(0.5 - mark, 0, 1)
        nodule = _sphere(rng, corner, _ASIDE["nodule"], _NODULE_PLACE, rng.uniform(*_NODULE_RADIUS))
        contrast = _CONTRAST * (1 + _CONTRAST_SPREAD * rng.uniform(-1, 1))
        image += np.float32(contrast) * np.clip(0.5 - nodule, 0, 1)
        labels[nodule <= 0] = kind
    image += np.float32(_NOISE) * rng.standard_normal(SHAPE, dtype=np.float32)
    stored = np.rint(np.clip(image, 0, 4095)).astype(np.int16)
    if rng.random() < 0.5:  # the marks are at either end
        stored, labels = stored[::-1].copy(), labels[::-1].copy()
    return Volume(stored[None], np.eye(4), "synthetic"), Volume(labels[None], np.eye(4), "synthetic")


def _sphere(
    rng: np.random.Generator,
    corner: tuple[int, int],
    aside: float,
    along: tuple[float, float],
    radius: float,
) -> np.ndarray:
    """Signed distance `[H,W,D]` to a sphere at a random place of a column, below 0 inside."""
    across = [edge + (_COLUMN - 1) / 2 + rng.uniform(-aside, aside) for edge in corner]
    centre = np.array([rng.uniform(*along), *across], np.float32).reshape(3, 1, 1, 1)
    offset = np.indices(SHAPE, dtype=np.float32) - centre
    distance: np.ndarray = np.sqrt((offset**2).sum(axis=0)) - np.float32(radius)
    return distance
