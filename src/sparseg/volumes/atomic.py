"""Files that are complete at their final name, or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from sparseg.errors import VolumeError


def write_atomically(path: Path, write: Callable[[BinaryIO], None], verify: Callable[[Path], None]) -> None:
    """Write beside `path` under a temporary name, flush to disk, verify, then rename.

    Args:
        path: Final name; an existing file is replaced only by a verified one.
        write: Writes the content.
        verify: Reads the temporary file back and raises if it is not what was meant.

    Raises:
        VolumeError: the folder does not exist, or the disk refuses (full, read-only, ...).
    """
    # A random name keeps case names out of stray files and lets several processes write at once.
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        verify(temporary)
        temporary.replace(path)
    except OSError as error:
        raise VolumeError(
            "the output must be writable",
            received=error.strerror or type(error).__name__,
            remedy="check that the folder exists, is writable and has free space",
            where=path,
            code="write-failed",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    # Some network file systems cannot sync a folder; the file is complete all the same.
    with suppress(OSError):
        _sync_folder(path.parent)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write `content` as `write_atomically` does, read back and compared.

    Raises:
        VolumeError: the folder does not exist, or the disk refuses.
    """

    def write(file: BinaryIO) -> None:
        file.write(content)

    def verify(temporary: Path) -> None:
        if temporary.read_bytes() != content:
            raise OSError("the file read back differs")

    write_atomically(path, write, verify)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable where the system allows folders to be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
