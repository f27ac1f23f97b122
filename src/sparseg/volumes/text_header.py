"""What the text headers of NRRD and MetaImage files have in common: one record, and words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from sparseg.errors import GeometryError, VolumeError

MAX_HEADER = 2**16
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAX_AXIS = 2**20


@dataclass(frozen=True)
class TextHeader:
    """Where the numbers of a file are, what they are, and where they lie in the patient.

    Attributes:
        dtype: Stored type with its byte order.
        sizes: Axes as stored, fastest first, the channel axis among them.
        channel_axis: Which of them holds channels, None for a plain 3-D image.
        affine: `[4, 4]` voxel -> RAS mm; None where the header states no orientation.
        spacing: Voxel edges in mm along the three axes of space, for want of an orientation; may be empty.
        packing: How the numbers are stored.
        data_file: The file that holds them.
        data_offset: Their first byte there.
        packed_size: Compressed bytes if the header states them.
    """

    dtype: np.dtype[np.generic]
    sizes: tuple[int, ...]
    channel_axis: int | None
    affine: np.ndarray | None
    spacing: tuple[float, ...]
    packing: Literal["raw", "zlib"]
    data_file: Path
    data_offset: int
    packed_size: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the numbers, uncompressed."""
        return prod(self.sizes) * self.dtype.itemsize


def bad_header(rule: str, received: object, where: Path, code: str, remedy: str = "") -> VolumeError:
    """The error for a header that cannot be used."""
    remedy = remedy or "correct the header, or write the file again with a current tool"
    return VolumeError(rule, received=received, remedy=remedy, where=where, code=f"itk-{code}")


def bad_place(rule: str, received: object, where: Path, code: str) -> GeometryError:
    """The error for a header whose orientation or spacing cannot be used."""
    remedy = "correct the header, or write the file again with a current tool"
    return GeometryError(rule, received=received, remedy=remedy, where=where, code=f"itk-{code}")


def whole_numbers(text: str, field: str, where: Path) -> tuple[int, ...]:
    """The whole numbers of a field.

    Raises:
        VolumeError: something else in it.
    """
    words = text.split()
    if not words or not all(word.lstrip("+-").isdecimal() and len(word) < 20 for word in words):
        raise bad_header(f"'{field}' must hold whole numbers", text[:80], where, "header")
    return tuple(int(word) for word in words)


def real_numbers(text: str, field: str, count: int, where: Path) -> np.ndarray:
    """The `count` finite numbers of a field.

    Raises:
        GeometryError: another count, or a word that is not a finite number.
    """
    try:
        values = np.array([float(word) for word in text.replace(",", " ").split()], dtype=np.float64)
    except ValueError:
        values = np.empty(0)
    if len(values) != count or not (np.abs(values) < 1e12).all():
        raise bad_place(f"'{field}' must hold {count} finite numbers", text[:120], where, "bad-numbers")
    return values


def check_sizes(sizes: tuple[int, ...], count: int, field: str, where: Path) -> None:
    """Check that there are `count` axes, each with at least one element.

    Raises:
        VolumeError: otherwise.
    """
    if len(sizes) != count or not all(1 <= size <= _MAX_AXIS for size in sizes):
        raise bad_header(
            f"'{field}' must hold {count} lengths from 1 to {_MAX_AXIS}", list(sizes), where, "bad-size"
        )


def data_file_beside(text: str, where: Path) -> Path:
    """The file beside a header that holds its numbers.

    Raises:
        VolumeError: a list or pattern of files, or a path that leaves the folder of the header.
    """
    name = text.strip()
    if name.upper().startswith("LIST") or "%" in name:
        raise bad_header(
            "the numbers must be in one file", name[:80], where, "data-file", "write the image as one file"
        )
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or not parts[0] or ":" in name or ".." in parts:
        raise bad_header(
            "the data file must lie beside its header",
            repr(name[:80]),
            where,
            "data-file",
            "move it there and write its plain name into the header",
        )
    return where.parent.joinpath(*parts)


def spatial_shape(header: TextHeader) -> tuple[int, int, int]:
    """The three axes of space, fastest first."""
    i, j, k = (size for axis, size in enumerate(header.sizes) if axis != header.channel_axis)
    return i, j, k
