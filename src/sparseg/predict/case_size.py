"""How large a case is on its way from file to file, from its header alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from sparseg.predict.reading import ReadOptions
from sparseg.preprocessing.config import PreprocessConfig
from sparseg.preprocessing.orientation import ras_axes
from sparseg.preprocessing.pipeline import SAME_SPACING
from sparseg.preprocessing.resample import num_voxels
from sparseg.shapes import Triple
from sparseg.volumes.geometry import spacing_of
from sparseg.volumes.grid import read_grid
from sparseg.windows.grid import axis_starts


@dataclass(frozen=True)
class CaseSize:
    """Sizes of a case; the model grid is that of the whole field, since no crop is known before reading.

    Attributes:
        shape: Voxels of the original grid.
        reoriented_shape: The same on RAS axes.
        model_shape: Voxels of the model grid, at most; RAS axes.
        num_channels: C.
        stored_bytes: Bytes per voxel and channel of stored numbers that are held while the image is read.
        is_scaled: Whether the stored numbers become others by a slope.
    """

    shape: Triple
    reoriented_shape: Triple
    model_shape: Triple
    num_channels: int
    stored_bytes: int
    is_scaled: bool = False

    @property
    def num_voxels(self) -> int:
        """Voxels of the original grid."""
        return prod(self.shape)

    def padded_shape(self, roi: Triple) -> Triple:
        """Voxels of the model grid where at least one window fits."""
        h, w, d = (max(edge, window) for edge, window in zip(self.model_shape, roi, strict=True))
        return (h, w, d)

    def num_windows(self, roi: Triple, overlap: float) -> int:
        """Windows on the model grid, those in background included."""
        axes = zip(self.padded_shape(roi), roi, strict=True)
        return prod(len(axis_starts(edge, window, overlap)) for edge, window in axes)


def size_of_case(
    image: Path,
    channels: Sequence[Path],
    config: PreprocessConfig,
    reading: ReadOptions,
    *,
    series_uid: str | None = None,
) -> CaseSize:
    """Read the headers of a case.

    Args:
        image: File, or folder with one DICOM series; of a `.zip` the folder it is unpacked into.
        channels: Files of the other channels.
        config: The model's preprocessing.
        reading: How images are read.
        series_uid: Series to take; None takes that of `reading`.

    Raises:
        VolumeError, GeometryError: a header that cannot be trusted.
    """
    grids = [
        read_grid(
            path,
            affine_choice=reading.affine_choice,
            assume_orientation=reading.assume_orientation,
            series_uid=series_uid or reading.series_uid,
        )
        for path in (image, *channels)
    ]
    first = grids[0]
    return CaseSize(
        first.shape,
        *grids_of(first.shape, first.affine, config),
        sum(grid.num_channels for grid in grids),
        max(grid.stored_bytes for grid in grids),
        is_scaled=any(grid.is_scaled for grid in grids),
    )


def grids_of(shape: Triple, affine: np.ndarray, config: PreprocessConfig) -> tuple[Triple, Triple]:
    """Shapes on RAS axes of a whole image and of the model grid over it; see `preprocessing.pipeline`."""
    permutation, _ = ras_axes(affine)
    spacing = spacing_of(affine)
    sizes, edges = [], []
    for axis, original in enumerate(permutation):
        ratio = 1.0 if config.spacing is None else config.spacing[axis] / float(spacing[original])
        size = shape[original]
        sizes.append(size)
        edges.append(size if abs(ratio - 1) <= SAME_SPACING else num_voxels(size, ratio))
    return (sizes[0], sizes[1], sizes[2]), (edges[0], edges[1], edges[2])
