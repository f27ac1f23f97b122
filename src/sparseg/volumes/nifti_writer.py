"""NIfTI writer: a new header without a trace of the input's, read back before the file gets its name."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from sparseg.errors import GeometryError, LabelError, VolumeError
from sparseg.volumes.atomic import write_atomically
from sparseg.volumes.byte_source import ByteSource
from sparseg.volumes.geometry import corner_distance_mm, is_orthogonal, rounding_tolerance_mm
from sparseg.volumes.nifti_header import NIFTI1_SIZE
from sparseg.volumes.volume import Volume

# Level 3 writes label maps about as small as 6 at several times the speed.
_GZIP_LEVEL = 3
_COMMENT_CODE = 6
_MAX_DIM = 32767
_SLAB_BYTES = 2**23


def write_label_map(
    path: Path | str,
    labels: np.ndarray,
    affine: np.ndarray,
    *,
    label_names: Mapping[int, str] | None = None,
    label_colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> None:
    """Write a label map as .nii or .nii.gz.

    Args:
        path: Final name; it exists afterwards only if the file read back equal.
        labels: `[H, W, D]`, uint8 or uint16.
        affine: 4x4 voxel -> RAS mm; stored as sform, and as qform too if a quaternion can hold it.
        label_names: Names of ids, stored as a JSON comment extension.
        label_colours: Red, green, blue of 0 to 255 by id, stored beside the names; `read_label_table` reads
            both back.

    Raises:
        LabelError: labels of another type or number of axes.
        VolumeError: the file cannot be written, or reads back different.
        GeometryError: an affine that is not invertible.
    """
    if labels.dtype not in (np.uint8, np.uint16) or labels.ndim != 3:
        raise LabelError(
            "a label map must be [H,W,D] of uint8 or uint16",
            received=f"{labels.dtype} {labels.shape}",
            remedy="convert the ids to uint8 or uint16",
            where=path,
            code="label-type",
        )
    checked = Volume(labels[None], affine, source=str(path))
    names = {str(key): str(value) for key, value in (label_names or {}).items()}
    colours = {str(key): list(value) for key, value in (label_colours or {}).items()}
    content = {"labels": names, **({"colours": colours} if colours else {})}
    extension = json.dumps(content).encode() if names or colours else b""
    _write(Path(path), labels, checked.affine, extension)


def write_image(path: Path | str, volume: Volume) -> None:
    """Write an image as .nii or .nii.gz: int16 if its array is int16, otherwise float32; channels last.

    Raises:
        VolumeError: voxels that float32 cannot hold, or the file cannot be written or reads back different.
    """
    array = volume.array
    if array.dtype != np.int16:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise VolumeError(
                "every voxel must be finite in float32",
                received=f"{int((~np.isfinite(array)).sum())} others",
                remedy="repair the image before writing it",
                where=path,
                code="nifti-nonfinite",
            )
    stored = array[0] if volume.num_channels == 1 else np.moveaxis(array, 0, 3)
    _write(Path(path), stored, volume.affine, b"")


def _write(path: Path, array: np.ndarray, affine: np.ndarray, extension: bytes) -> None:
    if not path.name.lower().endswith((".nii", ".nii.gz")) or "\0" in str(path):
        raise VolumeError(
            "an output name must end in .nii or .nii.gz, without NUL bytes",
            received=repr(path.name),
            remedy="choose another name",
            where=path,
            code="nifti-suffix",
        )
    if 0 in array.shape or max(array.shape) > _MAX_DIM:
        raise VolumeError(
            f"every axis must have 1 to {_MAX_DIM} voxels",
            received=array.shape,
            remedy="crop or split the volume",
            where=path,
            code="nifti-bad-dim",
        )
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    head = make_head(array.dtype, array.shape, affine, extension, path)
    compressed = path.suffix.lower() == ".gz"
    write_atomically(
        path,
        partial(_write_stream, head=head, array=array, compressed=compressed),
        partial(_verify, head=head, array=array, compressed=compressed, path=path),
    )


def make_head(
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    affine: np.ndarray,
    extension: bytes,
    path: Path,
    *,
    slope: float = 1.0,
) -> bytes:
    """Return everything before the voxels: header, and a comment extension unless it is empty.

    Raises:
        GeometryError: an affine that float32 cannot hold.
    """
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_slope_inter(slope, 0)
    header.set_sform(affine, code=1)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    if is_orthogonal(affine):
        header.set_qform(affine, code=1)
        # Without shear, and in float32: a form that would say something else is better left out.
        missed = corner_distance_mm(header.get_qform(), affine, shape[:3])
        if missed > rounding_tolerance_mm(affine, shape[:3]):
            header["qform_code"] = 0
    stored = header.get_sform()
    if not np.allclose(stored, affine, rtol=1e-6, atol=1e-6):
        raise GeometryError(
            "the affine must survive storage as float32",
            received=affine.tolist(),
            remedy="move the image closer to the origin",
            where=path,
            code="write-affine",
        )
    block = b""
    if extension:
        size = -(-(len(extension) + 8) // 16) * 16
        block = struct.pack("<2i", size, _COMMENT_CODE) + extension.ljust(size - 8, b"\0")
    header["magic"] = b"n+1"
    header["vox_offset"] = NIFTI1_SIZE + 4 + len(block)
    return bytes(header.binaryblock) + bytes([bool(block), 0, 0, 0]) + block


def file_slabs(array: np.ndarray) -> Iterator[bytes]:
    """Yield the voxels in file order (first axis fastest), a few MiB at a time."""
    planes = max(1, _SLAB_BYTES // max(1, array[..., 0].nbytes))
    for start in range(0, array.shape[-1], planes):
        yield array[..., start : start + planes].tobytes(order="F")


def _write_stream(file: BinaryIO, *, head: bytes, array: np.ndarray, compressed: bool) -> None:
    if not compressed:
        file.write(head)
        file.writelines(file_slabs(array))
        return
    # No name and no time in the gzip header: equal content gives equal bytes, and nothing leaks.
    with gzip.GzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0) as stream:
        stream.write(head)
        for slab in file_slabs(array):
            stream.write(slab)


def _verify(temporary: Path, *, head: bytes, array: np.ndarray, compressed: bool, path: Path) -> None:
    with ByteSource(temporary, compressed=compressed, where=str(path)) as source:
        equal = source.read(len(head)) == head and all(
            source.read(len(slab)) == slab for slab in file_slabs(array)
        )
        if equal:
            source.finish()
    if not equal:
        raise VolumeError(
            "the written file must read back equal",
            received="different bytes",
            remedy="check the disk and write again",
            where=path,
            code="write-verify",
        )
