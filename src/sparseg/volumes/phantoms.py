"""Small seeded synthetic volumes for tests and benchmarks."""

from __future__ import annotations

import numpy as np

from sparseg.shapes import Triple
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.volume import Volume


def make_phantom(
    shape: Triple = (32, 28, 24),
    *,
    spacing: tuple[float, float, float] = (1.5, 1.0, 2.0),
    num_classes: int = 3,
    seed: int = 0,
) -> tuple[Volume, Volume]:
    """Return an image `[1, H, W, D]` float32 and its labels `[1, H, W, D]` int32 on the same grid.

    Ellipsoids of classes 1 to `num_classes - 1` lie off the centre at places that no flip or axis swap maps
    onto themselves; class c has mean intensity `100 * c` over a background of 0, noise has deviation 5.
    """
    rng = np.random.default_rng(seed)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20.0, -15.0, -10.0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    world = voxel_to_world(affine, grid)
    extent = np.array(shape) * spacing
    labels = np.zeros(shape, dtype=np.int32)
    for label in range(1, num_classes):
        # Fractions of the extent: distinct per axis and per class, so that the whole has no symmetry.
        centre = 0.5 + 0.26 * np.sin(label * np.array([1.0, 1.7, 2.9]) + [0.3, 0.9, 2.1])
        radius = np.array([0.22, 0.17, 0.26]) * extent * rng.uniform(0.85, 1.0)
        inside = (((world - affine[:3, 3] - centre * extent) / radius) ** 2).sum(axis=-1) <= 1
        labels[inside] = label
    image = labels * np.float32(100) + rng.normal(0, 5, shape).astype(np.float32)
    return Volume(image[None].astype(np.float32), affine, "phantom"), Volume(labels[None], affine, "phantom")
