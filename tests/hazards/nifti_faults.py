"""Makes NIfTI files, sound and damaged, from one small base image."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from sparseg.errors import SparsegError

SHAPE = (12, 14, 10)


def base_array() -> np.ndarray:
    """Return a seeded float32 image with one off-centre box, so that no flip goes unseen."""
    array = np.random.default_rng(0).normal(100, 5, SHAPE).astype("<f4")
    array[2:4, 5:9, 3:8] += 300
    return array


def base_affine() -> np.ndarray:
    affine = np.diag([1.5, 1.0, 2.0, 1.0])
    affine[:3, 3] = (-20, -15, -10)
    return affine


def rotated(affine: np.ndarray, about_x: float = 20.0, about_z: float = 15.0) -> np.ndarray:
    """Return `affine` turned in the patient by two angles in degrees."""
    x, z = np.radians([about_x, about_z])
    turn = np.eye(4)
    turn[:3, :3] = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    )
    return turn @ affine


def nifti_bytes(
    array: np.ndarray | None = None,
    *,
    qform: tuple[np.ndarray | None, int] | None = None,
    sform: tuple[np.ndarray | None, int] | None = None,
    version: int = 1,
    endianness: str = "<",
    unit: str = "mm",
) -> bytes:
    """Return an uncompressed file; both forms hold the base affine with code 1 unless given."""
    array = base_array() if array is None else array
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    header = kind(endianness=endianness)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units(unit)
    # Setting a qform sets pixdim from it; a file with only an sform needs it said.
    header["pixdim"][1:4] = np.linalg.norm(_given(sform)[:3, :3], axis=0)
    header.set_qform(*(qform or (base_affine(), 1)))
    header.set_sform(*(sform or (base_affine(), 1)))
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    data = array.astype(array.dtype.newbyteorder(endianness)).tobytes(order="F")
    return header.binaryblock + bytes(4) + data


def _given(form: tuple[np.ndarray | None, int] | None) -> np.ndarray:
    return base_affine() if form is None or form[0] is None else form[0]


def patched(raw: bytes, offset: int, fmt: str, *values: Any) -> bytes:
    """Return `raw` with header fields overwritten (little-endian)."""
    result = bytearray(raw)
    struct.pack_into("<" + fmt, result, offset, *values)
    return bytes(result)


def save(path: Path, raw: bytes) -> Path:
    """Write `raw`, as gzip if the name says so."""
    path.write_bytes(gzip.compress(raw, 6, mtime=0) if path.suffix == ".gz" else raw)
    return path


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    """Expect a typed error with `code`, on one line, with a remedy, naming `words`."""
    with pytest.raises(SparsegError) as info:
        yield
    error, text = info.value, str(info.value)
    assert error.code == code, text
    assert error.where, text
    assert error.remedy, text
    assert "\n" not in text
    assert all(word in text for word in words), text
