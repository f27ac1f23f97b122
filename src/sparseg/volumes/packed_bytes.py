"""Numbers from a place in a file, plain or compressed, every byte accounted for and checked to the end."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparseg.errors import VolumeError

_CHUNK = 2**18
# Deflate cannot shrink data by more than this factor, so a larger claim must be a lie.
_MAX_DEFLATE_RATIO = 1032
# Either of the two wrappers of deflate, each with a checksum: MetaImage has zlib's, NRRD gzip's.
_ZLIB_OR_GZIP = 47


def read_bytes_at(
    path: Path, offset: int, count: int, *, compressed: bool, packed_size: int | None = None
) -> np.ndarray:
    """Read `count` bytes that must fill the file from `offset` to its end.

    Args:
        path: The file.
        offset: First byte.
        count: Bytes expected, after inflating.
        compressed: Whether they are zlib or gzip data.
        packed_size: Compressed bytes, if the header states them.

    Returns:
        uint8 `[count]`, writable.

    Raises:
        VolumeError: missing, cut short, damaged, or longer than it should be.
    """
    try:
        size = path.stat().st_size - offset
        _check_size(path, size, count, compressed=compressed, packed_size=packed_size)
        buffer = np.empty(count, dtype=np.uint8)
        with path.open("rb") as file:
            file.seek(offset)
            if compressed:
                _inflate(file, buffer.data, path)
            elif file.readinto(buffer.data) != count:
                raise _cut(path, "an early end")
    except OSError as error:
        code = "file-missing" if isinstance(error, FileNotFoundError) else "file-unreadable"
        raise VolumeError(
            "the file with the numbers must exist and be readable",
            received=error.strerror,
            remedy="keep it beside its header",
            where=path,
            code=code,
        ) from None
    return buffer


def _check_size(path: Path, size: int, count: int, *, compressed: bool, packed_size: int | None) -> None:
    """Check before memory is taken that so many bytes can be there."""
    if not compressed:
        if size < count:
            raise _cut(path, f"{size} bytes for {count}")
        if size > count:
            raise _trailing(path, f"{size - count} bytes more")
        return
    if packed_size is not None and size < packed_size:
        raise _cut(path, f"{size} compressed bytes for {packed_size}")
    if packed_size is not None and size > packed_size:
        raise _trailing(path, f"{size - packed_size} bytes more")
    if count > size * _MAX_DEFLATE_RATIO:
        raise _cut(path, f"{size} compressed bytes for {count}")


def _inflate(file: BinaryIO, target: memoryview, path: Path) -> None:
    """Fill `target` from the compressed stream, which must end there with a right checksum."""
    stream = zlib.decompressobj(wbits=_ZLIB_OR_GZIP)
    got, pending = 0, b""
    while not stream.eof:
        packed = pending or file.read(_CHUNK)
        if not packed:
            raise _cut(path, "compressed data without their checksum")
        try:
            # One byte more than wanted, to notice a stream that holds too much.
            piece = stream.decompress(packed, min(len(target) - got + 1, 4 * _CHUNK))
        except zlib.error as error:
            raise VolumeError(
                "compressed data must be intact",
                received=str(error),
                remedy="copy or export the file again",
                where=path,
                code="itk-corrupt",
            ) from None
        pending = stream.unconsumed_tail
        if got + len(piece) > len(target):
            raise _trailing(path, "more numbers than the header declares")
        target[got : got + len(piece)] = piece
        got += len(piece)
    if got < len(target):
        raise _cut(path, f"{len(target) - got} bytes too few")
    if stream.unused_data or pending or file.read(1):
        raise _trailing(path, "bytes after the compressed data")


def _cut(path: Path, received: str) -> VolumeError:
    return VolumeError(
        "the file must hold all the bytes its header declares",
        received=received,
        remedy="it is cut short: copy or export it again",
        where=path,
        code="itk-truncated",
    )


def _trailing(path: Path, received: str) -> VolumeError:
    return VolumeError(
        "nothing may follow the voxels",
        received=received,
        remedy="the header or the file is damaged: export it again",
        where=path,
        code="itk-trailing",
    )
