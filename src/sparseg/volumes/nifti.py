"""Strict NIfTI reader: the header is checked first and the stream read to its checksum, then handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from sparseg.errors import VolumeError
from sparseg.volumes.byte_source import ByteSource
from sparseg.volumes.nifti_affine import AffineChoice, world_affine
from sparseg.volumes.nifti_header import NIFTI2_SIZE, NiftiHeader, parse_header
from sparseg.volumes.values import image_values, label_values
from sparseg.volumes.volume import Volume


def read_nifti(
    path: Path | str,
    *,
    max_voxels: int = 2**31,
    affine_choice: AffineChoice = "refuse",
    assume_orientation: str | None = None,
    nonfinite: float | None = None,
    kind: Literal["image", "label"] = "image",
) -> Volume:
    """Read a .nii or .nii.gz file (NIfTI-1 or -2, single file, either byte order).

    Args:
        path: The file.
        max_voxels: Refuse larger images before any memory is taken.
        affine_choice: Which form to believe where qform, sform and pixdim contradict each other.
        assume_orientation: Axis codes ("LPS") for a file without any orientation; spacing comes from pixdim.
        nonfinite: Value that replaces NaN and infinities (counted in the log); by default they are refused.
        kind: "image" gives float32, scaled as the header says; "label" gives int32 ids, exact.

    Returns:
        `[C, H, W, D]`, C = 1 for a 3-D file; in memory the first voxel axis runs fastest, as in the file.

    Raises:
        VolumeError: unreadable, damaged, truncated, not scalar 3-D data, or not finite.
        GeometryError: orientation or spacing missing, contradictory or sheared.
        LabelError: a label id that is negative, fractional or not finite.
    """
    path = Path(path)
    where = str(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise VolumeError(
            "a NIfTI file must end in .nii or .nii.gz",
            received=path.suffix or "no suffix",
            remedy="rename or convert it",
            where=where,
            code="nifti-suffix",
        )
    with ByteSource(path, compressed=path.suffix.lower() == ".gz", where=where) as source:
        header = read_header(source, where=where, max_voxels=max_voxels)
        affine = world_affine(
            header, choice=affine_choice, assume_orientation=assume_orientation, where=where
        )
        stored = _read_voxels(source, header)
    with np.errstate(over="ignore", invalid="ignore"):
        values = _scaled(stored, header)
    if kind == "label":
        return Volume(label_values(values, where=where), affine, source=where)
    array = image_values(
        values,
        nonfinite=nonfinite,
        where=where,
        code="nifti-nonfinite",
        may_overflow=header.slope is not None or header.dtype.kind == "f",
    )
    return Volume(array, affine, source=where)


def read_nifti_header(path: Path, *, max_voxels: int = 2**31) -> NiftiHeader:
    """Read no more than the header of a .nii or .nii.gz file.

    Raises:
        VolumeError: unreadable, a bad header, or a file that cannot hold what it declares.
    """
    where = str(path)
    with ByteSource(path, compressed=path.suffix.lower() == ".gz", where=where) as source:
        return read_header(source, where=where, max_voxels=max_voxels)


def read_header(source: ByteSource, *, where: str, max_voxels: int) -> NiftiHeader:
    """Read the header and pass on to the first voxel.

    Raises:
        VolumeError: a bad header, or a file that cannot hold what it declares.
    """
    raw = source.read(NIFTI2_SIZE)
    header = parse_header(raw, where=where, max_voxels=max_voxels)
    source.require_capacity(header.data_offset + header.num_bytes)
    source.unread(raw[min(len(raw), header.data_offset) :])
    source.skip(header.data_offset - min(len(raw), header.data_offset))
    return header


def _read_voxels(source: ByteSource, header: NiftiHeader) -> np.ndarray:
    """Return the stored numbers `[C, H, W, D]`."""
    buffer = np.empty(header.num_bytes, dtype=np.uint8)
    source.read_into(buffer.data)
    source.finish()
    array = buffer.view(header.dtype).reshape(header.shape, order="F")
    return np.moveaxis(array, 3, 0) if array.ndim == 4 else array[None]


def _scaled(stored: np.ndarray, header: NiftiHeader) -> np.ndarray:
    if header.slope is None:
        return stored
    scaled: np.ndarray = stored.astype(np.float64) * header.slope + header.inter
    return scaled
