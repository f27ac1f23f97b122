"""Cases in which a mark far away decides what a structure is, for the standing task `far`.

All nodules look alike. They are of one class where the mark at the other end of the image is bright and of
another where it is dark, as the level of a vertebra or the side of an organ is known from elsewhere. The mark
itself is not labelled. Nothing within 48 voxels of a nodule tells its class, which is farther than the
convolutions of a decoder see: whoever finds it has carried it there through the encoder.
"""

from __future__ import annotations

import numpy as np

from sparseg.datasets.synth.deform import smooth_noise
from sparseg.shapes import Triple
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "nodule under a bright mark", 2: "nodule under a dark mark"}

SHAPE: Triple = (96, 32, 32)
NUM_NODULES = 4
_BASE, _CONTRAST, _CONTRAST_SPREAD = 400.0, 300.0, 0.2
_MARK_CONTRAST = {1: 350.0, 2: -350.0}
_MARK_RADIUS = 6.0
_NODULE_RADIUS = (2.0, 3.5)
# First axis, from the end with the mark: centre of the mark, centres of the nodules.
_MARK_PLACE, _NODULE_PLACE = (6.0, 8.0), (66.0, 90.0)
_TEXTURE = {3.0: 40.0, 12.0: 25.0}
_NOISE = 25.0
_BORDER = 5.0
_GAP = 2.0
_TRIES = 200


def draw_far_mark(index: int, *, seed: int = 0) -> tuple[Volume, Volume]:
    """Make case number `index`; equal arguments give equal voxels. Every other case has a bright mark.

    Args:
        index: Number of the case, from 0.
        seed: Seed of the whole set.

    Returns:
        Image `[1,H,W,D]` int16 of `SHAPE`, 1 mm, and labels `[1,H,W,D]` int32.
    """
    rng = np.random.default_rng((seed, index))
    label = 1 + index % 2
    image = np.full(SHAPE, _BASE, np.float32)
    for control, deviation in _TEXTURE.items():
        image += np.float32(deviation) * smooth_noise(rng, SHAPE, control, SHAPE)
    labels, taken = np.zeros(SHAPE, np.int32), np.full(SHAPE, np.inf, np.float32)
    mark = _sphere(rng, _MARK_PLACE, _MARK_RADIUS)
    image += np.float32(_MARK_CONTRAST[label]) * np.clip(0.5 - mark, 0, 1)
    placed = tries = 0
    while placed < NUM_NODULES and tries < _TRIES:
        tries += 1
        radius = rng.uniform(*_NODULE_RADIUS)
        nodule = _sphere(rng, _NODULE_PLACE, radius)
        if (taken[nodule <= _GAP] <= _GAP).any():
            continue
        taken, placed = np.minimum(taken, nodule), placed + 1
        contrast = _CONTRAST * (1 + _CONTRAST_SPREAD * rng.uniform(-1, 1))
        image += np.float32(contrast) * np.clip(0.5 - nodule, 0, 1)
        labels[nodule <= 0] = label
    image += np.float32(_NOISE) * rng.standard_normal(SHAPE, dtype=np.float32)
    stored = np.rint(np.clip(image, 0, 4095)).astype(np.int16)
    if rng.random() < 0.5:  # the mark is at either end
        stored, labels = stored[::-1].copy(), labels[::-1].copy()
    return Volume(stored[None], np.eye(4), "synthetic"), Volume(labels[None], np.eye(4), "synthetic")


def _sphere(rng: np.random.Generator, along: tuple[float, float], radius: float) -> np.ndarray:
    """Signed distance `[H,W,D]` to a sphere at a random place, below 0 inside."""
    across = [rng.uniform(_BORDER, edge - 1 - _BORDER) for edge in SHAPE[1:]]
    centre = np.array([rng.uniform(*along), *across], np.float32).reshape(3, 1, 1, 1)
    offset = np.indices(SHAPE, dtype=np.float32) - centre
    distance: np.ndarray = np.sqrt((offset**2).sum(axis=0)) - np.float32(radius)
    return distance
