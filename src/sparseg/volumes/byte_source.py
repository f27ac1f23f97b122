"""Bytes of a plain or gzip file, in order, never more than asked for, and checked to the very end."""

from __future__ import annotations

import zlib
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import Self

from sparseg.errors import VolumeError

_CHUNK = 2**18
# Deflate cannot shrink data by more than this factor, so a larger claim must be a lie.
_MAX_DEFLATE_RATIO = 1032


class ByteSource:
    """Reads a file front to back. Use as a context manager.

    Args:
        path: The file.
        compressed: Whether it must be gzip.
        where: File name for messages.

    Raises:
        VolumeError: missing, empty, or not in the declared packing.
    """

    def __init__(self, path: Path, *, compressed: bool, where: str) -> None:
        self._where = where
        try:
            status = path.stat()
            # Opening a pipe would wait for its writer, perhaps for ever.
            if not S_ISREG(status.st_mode):
                raise self._error(
                    "the input must be a regular file",
                    "a folder or device",
                    "check the path",
                    "file-unreadable",
                )
            self._size = status.st_size
            self._file = path.open("rb")
        except (OSError, ValueError) as error:
            code = "file-missing" if isinstance(error, FileNotFoundError) else "file-unreadable"
            received = error.strerror if isinstance(error, OSError) else "a name with a NUL byte"
            raise self._error(
                "the file must exist and be readable", received, "check the path", code
            ) from None
        self._compressed = compressed
        self._inflate = zlib.decompressobj(wbits=31) if compressed else None
        self._pending = b""
        self._returned = b""
        try:
            self._check_start()
        except VolumeError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer only at the end."""
        buffer = bytearray(count)
        return bytes(memoryview(buffer)[: self._fill(memoryview(buffer))])

    def unread(self, data: bytes) -> None:
        """Put back the last bytes read; they come first again."""
        self._returned = data + self._returned

    def skip(self, count: int) -> None:
        """Pass over `count` bytes.

        Raises:
            VolumeError: the file ends before.
        """
        while count > 0:
            step = min(count, _CHUNK)
            self.read_into(memoryview(bytearray(step)))
            count -= step

    def read_into(self, target: memoryview) -> None:
        """Fill `target` completely.

        Raises:
            VolumeError: the file ends before, or its compressed stream is damaged.
        """
        got = self._fill(target)
        if got < len(target):
            raise self._error(
                "the file must hold all the bytes its header declares",
                f"{len(target) - got} bytes too few",
                "it is cut short: copy or export it again",
                "nifti-truncated",
            )

    def require_capacity(self, total: int) -> None:
        """Check, before memory is taken, that the file can hold `total` uncompressed bytes at all.

        Raises:
            VolumeError: it cannot (or, uncompressed, it is longer).
        """
        if self._compressed:
            if total > self._size * _MAX_DEFLATE_RATIO:
                raise self._error(
                    "the file must hold all the bytes its header declares",
                    f"{self._size} compressed bytes for {total}",
                    "it is cut short: copy or export it again",
                    "nifti-truncated",
                )
        elif self._size != total:
            short = self._size < total
            raise self._error(
                f"the file must be exactly {total} bytes long, as its header declares",
                f"{self._size} bytes",
                "it is cut short: copy or export it again" if short else "remove what follows the voxels",
                "nifti-truncated" if short else "nifti-trailing",
            )

    def finish(self) -> None:
        """Check that nothing follows and, for gzip, that the checksum agrees.

        Raises:
            VolumeError: more bytes follow, or the checksum is missing or wrong.
        """
        if self.read(1):
            raise self._error(
                "nothing may follow the voxels",
                "more bytes than the header declares",
                "the header or the file is damaged: export it again",
                "nifti-trailing",
            )

    def _check_start(self) -> None:
        start = self._file.read(64)
        self._file.seek(0)
        if not start:
            raise self._error(
                "the file must not be empty", "0 bytes", "copy or export it again", "nifti-empty"
            )
        if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
            raise self._error(
                "the file must be an image", "an HTML or XML page", "download the file itself", "nifti-html"
            )
        if self._compressed and start[:2] != b"\x1f\x8b":
            raise self._error(
                "a .gz file must be gzip data",
                f"first bytes {start[:4].hex()}",
                "rename it to .nii if it is not compressed, otherwise copy it again",
                "nifti-not-gzip",
            )
        if not self._compressed and start[:3] == b"\x1f\x8b\x08":
            raise self._error(
                "a .nii file must not be compressed", "gzip data", "rename it to .nii.gz", "nifti-is-gzip"
            )

    def _fill(self, target: memoryview) -> int:
        got = min(len(target), len(self._returned))
        target[:got] = self._returned[:got]
        self._returned = self._returned[got:]
        if self._inflate is None:
            return got + self._read_plain(target[got:])
        while got < len(target):
            piece = self._inflated(len(target) - got)
            if not piece:
                break
            target[got : got + len(piece)] = piece
            got += len(piece)
        return got

    def _read_plain(self, target: memoryview) -> int:
        try:
            return self._file.readinto(target)
        except OSError as error:
            raise self._unreadable(error) from None

    def _read_packed(self, count: int = _CHUNK) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> VolumeError:
        return self._error(
            "the file must be readable to its end",
            error.strerror,
            "check the disk or the network",
            "file-unreadable",
        )

    def _inflated(self, limit: int) -> bytes:
        """Return 1 to `limit` further bytes, or none at a sound end of the stream."""
        assert self._inflate is not None
        while True:
            if self._inflate.eof and not self._next_member():
                return b""
            packed = self._pending or self._read_packed()
            try:
                piece = self._inflate.decompress(packed, min(limit, 4 * _CHUNK))
            except zlib.error as error:
                raise self._error(
                    "compressed data must be intact",
                    str(error),
                    "copy or export the file again",
                    "nifti-corrupt",
                ) from None
            self._pending = self._inflate.unconsumed_tail
            if piece:
                return piece
            if not packed and not self._inflate.eof:
                raise self._error(
                    "compressed data must run to its checksum",
                    "an early end",
                    "the file is cut short: copy or export it again",
                    "nifti-truncated",
                )

    def _next_member(self) -> bool:
        """Begin the next gzip member if there is one; zero padding after the last is allowed, as in gzip."""
        assert self._inflate is not None
        rest = self._inflate.unused_data or self._pending or self._read_packed()
        while rest and not rest.strip(b"\0"):
            rest = self._read_packed()
        if not rest:
            return False
        rest += self._read_packed(2)
        if rest[:2] != b"\x1f\x8b":
            raise self._error(
                "nothing may follow the compressed data",
                f"bytes {rest[:4].hex()}",
                "the file is damaged: copy or export it again",
                "nifti-trailing",
            )
        self._inflate = zlib.decompressobj(wbits=31)
        self._pending = rest
        return True

    def _error(self, rule: str, received: object, remedy: str, code: str) -> VolumeError:
        return VolumeError(rule, received=received, remedy=remedy, where=self._where, code=code)
