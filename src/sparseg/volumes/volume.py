"""`Volume`: an array with its place in the patient, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseg.errors import GeometryError, ShapeError
from sparseg.shapes import Triple


@dataclass(frozen=True)
class Volume:
    """An image or label map with channels first.

    Attributes:
        array: `[C, H, W, D]`; axes H, W, D are the voxel axes that `affine` maps, in that order.
        affine: float64 4x4, voxel index (i, j, k, 1) -> world position in mm, RAS+ (x to the patient's right
            is *negative* in LPS and positive here, as in NIfTI).
        source: Where it came from, for messages only.
    """

    array: np.ndarray
    affine: np.ndarray
    source: str = ""

    def __post_init__(self) -> None:
        if self.array.ndim != 4:
            raise ShapeError(
                "a Volume's array must be [C,H,W,D]",
                received=self.array.shape,
                where=self.source,
                remedy="add a channel axis in front",
            )
        affine = np.asarray(self.affine, dtype=np.float64)
        if (
            affine.shape != (4, 4)
            or not np.isfinite(affine).all()
            or abs(np.linalg.det(affine[:3, :3])) < 1e-12
        ):
            raise GeometryError(
                "an affine must be an invertible, finite 4x4 matrix",
                received=affine.tolist(),
                where=self.source,
                remedy="correct the header's orientation and spacing",
            )
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> Triple:
        """Voxels per spatial axis (H, W, D)."""
        _, h, w, d = self.array.shape
        return (h, w, d)

    @property
    def num_channels(self) -> int:
        """Number of channels C."""
        return int(self.array.shape[0])

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in mm, in array-axis order."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))
