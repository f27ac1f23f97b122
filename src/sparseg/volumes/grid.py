"""What the header of an image says about its size, without reading a voxel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparseg.shapes import Triple
from sparseg.volumes.itk import ITK_SUFFIXES, read_itk_header
from sparseg.volumes.nifti import read_nifti_header
from sparseg.volumes.nifti_affine import AffineChoice, world_affine
from sparseg.volumes.text_header import spatial_shape


@dataclass(frozen=True)
class ImageGrid:
    """An image as `read_volume` would return it.

    Attributes:
        shape: Voxels (H0, W0, D0).
        num_channels: C.
        affine: 4x4 voxel -> RAS mm.
        stored_bytes: Bytes per voxel and channel of stored numbers that are held while the image is read.
        is_scaled: Whether the stored numbers become others by a slope.
    """

    shape: Triple
    num_channels: int
    affine: np.ndarray
    stored_bytes: int
    is_scaled: bool = False


def read_grid(
    path: Path,
    *,
    affine_choice: AffineChoice = "refuse",
    assume_orientation: str | None = None,
    series_uid: str | None = None,
) -> ImageGrid:
    """Read the header of an image file, or of all slices of a DICOM series.

    Args:
        path: NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.
        affine_choice: As for `read_nifti`.
        assume_orientation: As for `read_nifti`.
        series_uid: Series to take from a folder that holds several.

    Raises:
        VolumeError, GeometryError: the header cannot be trusted; the voxels may still turn out damaged.
    """
    if path.is_dir():
        return _series_grid(path, series_uid)
    if path.name.lower().endswith(ITK_SUFFIXES):
        text, affine = read_itk_header(path, assume_orientation=assume_orientation)
        channels = 1 if text.channel_axis is None else text.sizes[text.channel_axis]
        return ImageGrid(_triple(spatial_shape(text)), channels, affine, text.dtype.itemsize)
    header = read_nifti_header(path)
    affine = world_affine(
        header, choice=affine_choice, assume_orientation=assume_orientation, where=str(path)
    )
    channels = header.shape[3] if len(header.shape) == 4 else 1
    return ImageGrid(
        _triple(header.shape), channels, affine, header.dtype.itemsize, is_scaled=header.slope is not None
    )


def _series_grid(folder: Path, series_uid: str | None) -> ImageGrid:
    # The DICOM library costs a quarter of a second, which a file should not pay for.
    from sparseg.volumes.dicom import series_slices

    slices, affine = series_slices(folder, series_uid=series_uid)
    rows, columns = slices[0].size
    # Slices are read and rescaled one by one, so hardly any stored number is held.
    return ImageGrid((columns, rows, len(slices)), 1, affine, 0)


def _triple(shape: tuple[int, ...]) -> Triple:
    return (shape[0], shape[1], shape[2])
