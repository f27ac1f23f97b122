"""A synthetic abdominal CT with the proportions of a real one, for timing the way from file to file.

A body of 350 x 250 mm on a table in a field of 410 mm, air around it, 13 organs as ellipsoids at the places
and with about the contrast they have, noise with the short range that reconstruction gives it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from sparseg.shapes import Triple
from sparseg.volumes.volume import Volume

Spacing = tuple[float, float, float]
CT_SHAPE: Triple = (512, 512, 160)
CT_SPACING: Spacing = (0.8, 0.8, 2.5)
# The same body on a grid of twice the edges, for runs of many pairs.
SIZES: dict[str, tuple[Triple, Spacing]] = {
    "full": (CT_SHAPE, CT_SPACING),
    "half": ((256, 256, 80), (1.6, 1.6, 5.0)),
}
AIR, FAT, MUSCLE, LUNG, BONE, SHEET, FOAM = -1000, -100, 45, -820, 420, -150, -930
NOISE_HU = 12.0


class Organ(NamedTuple):
    """An ellipsoid: centre and half axes in mm from the middle of the body (right, anterior, superior)."""

    name: str
    hu: int
    centre: tuple[float, float, float]
    radius: tuple[float, float, float]


ORGANS = (
    Organ("spleen", 150, (-105, -35, 50), (26, 36, 48)),
    Organ("right kidney", 215, (62, -55, -35), (26, 28, 52)),
    Organ("left kidney", 250, (-62, -55, -15), (26, 28, 52)),
    Organ("gallbladder", 5, (70, 45, -25), (15, 18, 28)),
    Organ("esophagus", 80, (-8, -25, 140), (9, 8, 60)),
    Organ("liver", 115, (75, 20, 60), (68, 72, 60)),
    Organ("stomach", 25, (-60, 48, 55), (42, 34, 40)),
    Organ("aorta", 340, (-12, -48, 0), (11, 11, 190)),
    Organ("inferior vena cava", 180, (18, -42, 0), (12, 10, 150)),
    Organ("portal vein", 285, (10, 5, 5), (30, 8, 12)),
    Organ("pancreas", 98, (-15, 22, -20), (48, 13, 16)),
    Organ("right adrenal", 65, (38, -48, 32), (9, 7, 14)),
    Organ("left adrenal", 132, (-38, -48, 50), (9, 7, 14)),
)
LABELS = {0: "background", **{label: organ.name for label, organ in enumerate(ORGANS, start=1)}}


def make_ct(
    shape: Triple = CT_SHAPE, spacing: Spacing = CT_SPACING, *, seed: int = 0
) -> tuple[Volume, Volume]:
    """Return a CT in HU `[1, H, W, D]` int16 and its label ids `[1, H, W, D]` uint8.

    Axes run to the patient's left, posterior and superior, as scanners store them. Body and organs keep their
    size in mm whatever the field; the seed moves and scales the organs a little and makes the noise.
    """
    rng = np.random.default_rng(seed)
    x, y, z = _axes(shape, spacing)
    image = np.full(shape, AIR, dtype=np.int16)
    labels = np.zeros(shape, dtype=np.uint8)
    _add_table(image, x, y)
    _add_body(image, x, y, z)
    for label, organ in enumerate(ORGANS, start=1):
        centre = np.array(organ.centre) + rng.uniform(-4, 4, 3)
        radius = np.array(organ.radius) * rng.uniform(0.92, 1.08, 3)
        box, inside = _ellipsoid(x, y, z, centre, radius)
        image[box][inside] = organ.hu
        labels[box][inside] = label
    _add_noise(image, rng)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = x[0], y[0], z[0]
    return Volume(image[None], affine, "synthetic CT"), Volume(labels[None], affine, "synthetic CT")


def model_spacing(shape: Triple, spacing: Spacing) -> Spacing:
    """Voxel edges of the model grid in mm: 15/8 as wide in plane, the slices as they are.

    The in-plane edge is chosen so that the first and the last voxel centre stay where they are. Then MONAI's
    `Spacing`, which keeps the first centre, and the grid of `prepare`, which keeps the middle, are one.
    """
    x, y = (edge * (n - 1) / round((n - 1) * 8 / 15) for n, edge in zip(shape[:2], spacing[:2], strict=True))
    return (x, y, spacing[2])


def _axes(shape: Triple, spacing: Spacing) -> list[np.ndarray]:
    """Positions in mm (right, anterior, superior) of the voxels along each axis; 0 is the middle."""
    steps = (-spacing[0], -spacing[1], spacing[2])
    return [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, steps, strict=True)]


def _add_table(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """A mattress on two carbon sheets with foam between, through all slices."""
    wide = np.flatnonzero(np.abs(x) < 195)
    for low, high, value in (
        (-140, -125, FOAM),
        (-143, -140, SHEET),
        (-165, -143, FOAM),
        (-168, -165, SHEET),
    ):
        rows = np.flatnonzero((y > low) & (y <= high))
        image[np.ix_(wide, rows)] = value


def _add_body(image: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    """Fat, muscle, spine and, above the abdomen, lungs; the body narrows a little towards both ends."""
    for k, height in enumerate(z):
        scale = 1 - 0.08 * (height / 200) ** 2
        plane = image[:, :, k]
        for value, a, b in ((FAT, 175.0, 125.0), (MUSCLE, 155.0, 105.0)):
            plane[_ellipse(x, y, (0.0, 0.0), (a * scale, b * scale))] = value
        if height > 95:
            for side in (-75.0, 75.0):
                plane[_ellipse(x, y, (side, 5.0), (62.0 * scale, 80.0 * scale))] = LUNG
        plane[_ellipse(x, y, (0.0, -78.0), (20.0, 18.0))] = BONE


def _ellipse(
    x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radius: tuple[float, float]
) -> np.ndarray:
    inside: np.ndarray = ((x - centre[0]) / radius[0])[:, None] ** 2 + ((y - centre[1]) / radius[1]) ** 2 <= 1
    return inside


def _ellipsoid(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: np.ndarray, radius: np.ndarray
) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """Box of the grid that holds an ellipsoid, and which voxels of the box lie in it."""
    box, squares = [], []
    for axis, c, r in zip((x, y, z), centre, radius, strict=True):
        hits = np.flatnonzero(np.abs(axis - c) <= r)
        part = slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0)
        box.append(part)
        squares.append(((axis[part] - c) / r) ** 2)
    distance = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]
    return (box[0], box[1], box[2]), distance <= 1


def _add_noise(image: np.ndarray, rng: np.random.Generator) -> None:
    """Gaussian noise, smooth over about one voxel within a slice; clipped at air as scanners do."""
    for k in range(image.shape[2]):
        noise = ndimage.gaussian_filter(rng.standard_normal(image.shape[:2], dtype=np.float32), 0.8)
        noise *= NOISE_HU / noise.std()
        image[:, :, k] = np.clip(np.rint(image[:, :, k] + noise), -1024, 3071)
