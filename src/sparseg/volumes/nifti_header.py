"""The fixed part of a NIfTI-1 or NIfTI-2 file, read by hand and checked before anything is allocated.

Layouts: nifti1.h and nifti2.h of the NIfTI data format working group.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from math import prod

import numpy as np

from sparseg.errors import VolumeError

NIFTI1_SIZE = 348
NIFTI2_SIZE = 540
_EXTENSION_FLAG = 4
_MAX_OFFSET = 2**26

_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_REFUSED_DTYPES = {
    1: "binary",
    32: "complex64",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}


@dataclass(frozen=True)
class NiftiHeader:
    """What the reader uses of a header, as stored: lengths still in the file's own unit.

    Attributes:
        version: 1 or 2.
        dtype: Stored voxel type with its byte order.
        shape: Stored axes, trailing axes of length 1 removed down to three: (H, W, D) or (H, W, D, C).
        pixdim: All eight numbers, qfac first.
        data_offset: First byte of the voxels.
        slope: Scale of stored values; None without scaling.
        inter: Offset added after scaling, 0 without scaling.
        unit: Spatial unit code (0 unknown, 1 metre, 2 mm, 3 micron).
        qform_code: 0 for none.
        sform_code: 0 for none.
        quaternion: b, c, d and the offsets x, y, z.
        srow: `[3, 4]` rows of the sform.
    """

    version: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    pixdim: tuple[float, ...]
    data_offset: int
    slope: float | None
    inter: float
    unit: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    srow: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Bytes of voxel data."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Layout:
    """Byte offsets and formats of the fields in one version."""

    size: int
    dim: tuple[int, str]
    datatype: tuple[int, str]
    pixdim: tuple[int, str]
    offset: tuple[int, str]
    scaling: tuple[int, str]
    unit: tuple[int, str]
    codes: tuple[int, str]
    quaternion: tuple[int, str]
    srow: tuple[int, str]


_LAYOUTS = {
    1: _Layout(
        size=NIFTI1_SIZE,
        dim=(40, "8h"),
        datatype=(70, "2h"),
        pixdim=(76, "8f"),
        offset=(108, "f"),
        scaling=(112, "2f"),
        unit=(123, "B"),
        codes=(252, "2h"),
        quaternion=(256, "6f"),
        srow=(280, "12f"),
    ),
    2: _Layout(
        size=NIFTI2_SIZE,
        dim=(16, "8q"),
        datatype=(12, "2h"),
        pixdim=(104, "8d"),
        offset=(168, "q"),
        scaling=(176, "2d"),
        unit=(500, "i"),
        codes=(344, "2i"),
        quaternion=(352, "6d"),
        srow=(400, "12d"),
    ),
}


def parse_header(raw: bytes, *, where: str, max_voxels: int = 2**31) -> NiftiHeader:
    """Parse and check the first 540 bytes (348 suffice for NIfTI-1) of an uncompressed NIfTI file.

    Raises:
        VolumeError: not a single-file NIfTI, or a field that no honest file of scalar 3-D data has.
    """
    version, order = _identify(raw, where)
    layout = _LAYOUTS[version]

    def field(place: tuple[int, str]) -> tuple[float, ...]:
        return struct.unpack_from(order + place[1], raw, place[0])

    datatype, bitpix = (int(v) for v in field(layout.datatype))
    slope, inter = _check_scaling(*field(layout.scaling), where=where)
    qform_code, sform_code = (int(v) for v in field(layout.codes))
    if not (0 <= qform_code <= 5 and 0 <= sform_code <= 5):
        raise VolumeError(
            "qform_code and sform_code must be 0 to 5",
            received=f"{qform_code} and {sform_code}",
            remedy="the header is damaged: export the file again",
            where=where,
            code="nifti-bad-code",
        )
    return NiftiHeader(
        version=version,
        dtype=_check_dtype(datatype, bitpix, order, where),
        shape=_check_dim(tuple(int(v) for v in field(layout.dim)), max_voxels, where),
        pixdim=field(layout.pixdim),
        data_offset=_check_offset(field(layout.offset)[0], layout.size + _EXTENSION_FLAG, where),
        slope=slope,
        inter=inter,
        unit=int(field(layout.unit)[0]) & 7,
        qform_code=qform_code,
        sform_code=sform_code,
        quaternion=field(layout.quaternion),
        srow=np.array(field(layout.srow), dtype=np.float64).reshape(3, 4),
    )


def _identify(raw: bytes, where: str) -> tuple[int, str]:
    if len(raw) < NIFTI1_SIZE:
        raise VolumeError(
            f"a NIfTI header has at least {NIFTI1_SIZE} bytes",
            received=f"{len(raw)} bytes",
            remedy="the file is cut short: copy or export it again",
            where=where,
            code="nifti-truncated",
        )
    for order in "<>":
        size = struct.unpack_from(order + "i", raw)[0]
        if size == NIFTI1_SIZE and raw[344:348] == b"n+1\0":
            return 1, order
        if size == NIFTI2_SIZE and raw[4:12] == b"n+2\0\r\n\x1a\n":
            if len(raw) < NIFTI2_SIZE:
                raise VolumeError(
                    f"a NIfTI-2 header has {NIFTI2_SIZE} bytes",
                    received=f"{len(raw)} bytes",
                    remedy="the file is cut short: copy or export it again",
                    where=where,
                    code="nifti-truncated",
                )
            return 2, order
    if raw[344:348] == b"ni1\0" or raw[4:8] == b"ni2\0":
        raise VolumeError(
            "only single-file NIfTI is read",
            received="the header half of a .hdr/.img pair",
            remedy="convert the pair to .nii.gz",
            where=where,
            code="nifti-pair",
        )
    raise VolumeError(
        "the file must begin with a NIfTI-1 or NIfTI-2 header",
        received=f"first bytes {raw[:4].hex()}, magic {raw[344:348].hex()}",
        remedy="it is another format or damaged (Analyze 7.5 has no orientation): convert it to NIfTI",
        where=where,
        code="nifti-bad-magic",
    )


def _check_dtype(datatype: int, bitpix: int, order: str, where: str) -> np.dtype[np.generic]:
    if datatype in _REFUSED_DTYPES:
        raise VolumeError(
            "voxels must be real scalars",
            received=f"{_REFUSED_DTYPES[datatype]} (datatype {datatype})",
            remedy="convert to one number per voxel, for example magnitude or gray value as float32",
            where=where,
            code="nifti-not-scalar",
        )
    if datatype not in _DTYPES:
        raise VolumeError(
            "the datatype must be one of the NIfTI codes",
            received=datatype,
            remedy="the header is damaged: export the file again",
            where=where,
            code="nifti-bad-datatype",
        )
    dtype: np.dtype[np.generic] = np.dtype(order + _DTYPES[datatype])
    if bitpix != dtype.itemsize * 8:
        raise VolumeError(
            f"bitpix must be {dtype.itemsize * 8} for datatype {datatype}",
            received=bitpix,
            remedy="the header is damaged: export the file again",
            where=where,
            code="nifti-bad-bitpix",
        )
    return dtype


def _check_dim(dim: tuple[int, ...], max_voxels: int, where: str) -> tuple[int, ...]:
    count, sizes = dim[0], dim[1 : 1 + max(0, dim[0])]
    if not 1 <= count <= 7 or min(sizes) < 1:
        raise VolumeError(
            "dim must hold 1 to 7 axes of at least one voxel each",
            received=list(dim),
            remedy="the header is damaged: export the file again",
            where=where,
            code="nifti-bad-dim",
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    if not 3 <= len(sizes) <= 4:
        raise VolumeError(
            "an image must have three axes, or four with channels last",
            received=f"{len(sizes)} axes {sizes}",
            remedy="save one 3-D volume per file"
            if len(sizes) > 4
            else "stack the slices into one 3-D volume",
            where=where,
            code="nifti-not-3d",
        )
    if prod(sizes) > max_voxels:
        raise VolumeError(
            f"an image must have at most {max_voxels} voxels",
            received=f"{prod(sizes)} voxels {sizes}",
            remedy="raise --max-voxels (argument max_voxels) if the file is really that large",
            where=where,
            code="nifti-too-large",
        )
    return sizes


def _check_offset(offset: float, smallest: int, where: str) -> int:
    # Some writers leave vox_offset 0 in single files; the exact size check of the reader confirms the guess.
    if offset == 0:
        return smallest
    if not math.isfinite(offset) or offset != int(offset) or not smallest <= offset <= _MAX_OFFSET:
        raise VolumeError(
            f"vox_offset must be a whole number from {smallest} to {_MAX_OFFSET}",
            received=offset,
            remedy="the header is damaged: export the file again",
            where=where,
            code="nifti-bad-offset",
        )
    return int(offset)


def _check_scaling(slope: float, inter: float, *, where: str) -> tuple[float | None, float]:
    # nibabel stores NaN in both fields for "no scaling"; the standard says slope 0.
    if slope == 0 or (math.isnan(slope) and math.isnan(inter)):
        return None, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise VolumeError(
            "scl_slope and scl_inter must be finite",
            received=f"{slope} and {inter}",
            remedy="set scl_slope to 0 (no scaling) or to the true scale",
            where=where,
            code="nifti-bad-scaling",
        )
    return (None, 0.0) if (slope, inter) == (1.0, 0.0) else (slope, inter)
