"""One DICOM series in a .zip file, unpacked without trusting a single name or size in it."""

from __future__ import annotations

import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sparseg.errors import SparsegError, VolumeError

_CHUNK = 1 << 20
_MAX_MEMBERS = 20_000
_MAX_BYTES = 8 << 30
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def is_archive(path: Path) -> bool:
    """Tell whether a path is meant as an archive of a series: a file called `.zip`."""
    return path.suffix.lower() == ".zip" and not path.is_dir()


@contextmanager
def unpacked(path: Path, *, max_members: int = _MAX_MEMBERS, max_bytes: int = _MAX_BYTES) -> Iterator[Path]:
    """Unpack an archive into a temporary folder, which is removed at the end.

    Members get numbers for names, so nothing in the archive decides where a file is written; folders within
    the archive are flattened. Errors raised while the folder is in use name the archive and the number of the
    member, counted from 1 as the archive lists them; names within an archive may be a patient's and are not
    quoted.

    Args:
        path: The .zip file.
        max_members: Refuse archives of more files.
        max_bytes: Refuse archives of more bytes, by what they declare and by what comes out.

    Yields:
        The folder.

    Raises:
        VolumeError: not a zip file, damaged, encrypted, too large, or a member that is a link or leads out of
            its folder. Nothing is unpacked where a name or a declared size is at fault.
    """
    with tempfile.TemporaryDirectory(prefix="sparseg-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as archive:
                members = _checked_members(archive, path, max_members, max_bytes)
                _unpack(archive, members, folder, path)
        except _FAULTS as error:
            raise _refuse(
                path, "the archive must be a sound zip file", type(error).__name__, "damaged"
            ) from None
        except OSError as error:
            received = error.strerror or type(error).__name__
            raise _refuse(
                path, "the archive must be readable and fit on the disk", received, "disk"
            ) from None
        try:
            yield folder
        except SparsegError as error:
            error.where = _by_member(error.where, folder, path)
            error.args = (_by_member(str(error), folder, path),)
            raise


def _by_member(text: str, folder: Path, path: Path) -> str:
    """Replace the temporary folder by the archive, and the names of its files by the numbers of members."""

    def number(match: re.Match[str]) -> str:
        is_member = (folder / match["name"]).is_file()
        shown = f"member {int(match['number']) + 1}" if is_member else match["name"]
        return f"{path}, {shown}" if match["folder"] else shown

    place = re.escape(str(folder))
    named = re.sub(
        rf"(?P<folder>{place}[/\\])?(?P<name>\b(?P<number>\d{{6}})\b(?:\.[a-z0-9]{{1,5}}\b)?)", number, text
    )
    return named.replace(str(folder), str(path))


def _checked_members(
    archive: zipfile.ZipFile, path: Path, max_members: int, max_bytes: int
) -> dict[int, zipfile.ZipInfo]:
    """Members to unpack by their place in the archive."""
    infos = archive.infolist()
    if len(infos) > max_members:
        raise _refuse(path, f"an archive may hold at most {max_members} files", len(infos), "members")
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise _refuse(path, f"an archive may unpack to at most {max_bytes} bytes", total, "bytes")
    for number, info in enumerate(infos):
        _check_member(info, number, path)
    kept = (not info.is_dir() and not _is_clutter(info.filename) for info in infos)
    return {number: info for (number, info), is_kept in zip(enumerate(infos), kept, strict=True) if is_kept}


def _check_member(info: zipfile.ZipInfo, number: int, path: Path) -> None:
    # `orig_filename` is what the archive says; zipfile has already turned some of it into something harmless.
    parts = re.split(r"[/\\]", info.orig_filename)
    if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in info.orig_filename:
        raise _refuse(
            path, "names in an archive must stay inside it", f"member {number + 1} leads out of it", "path"
        )
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refuse(
            path, "an archive may hold files only", f"a link or device, member {number + 1}", "link"
        )
    if info.flag_bits & 0x1:
        raise _refuse(
            path,
            "an archive must not be encrypted",
            f"member {number + 1} is",
            "encrypted",
            "unpack it first",
        )


def _is_clutter(name: str) -> bool:
    """Tell what a series folder may hold besides its images and a reader of folders would pass over."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith(".") or parts[-1].upper() == "DICOMDIR"


def _unpack(archive: zipfile.ZipFile, members: dict[int, zipfile.ZipInfo], folder: Path, path: Path) -> None:
    for number, info in members.items():
        suffix = PurePosixPath(info.filename).suffix.lower()
        # The suffix tells a text file beside the images from a damaged image.
        target = folder / f"{number:06d}{suffix if _SUFFIX.fullmatch(suffix) else ''}"
        with archive.open(info) as source, target.open("xb") as file:
            size = 0
            while size <= info.file_size and (chunk := source.read(_CHUNK)):
                size += len(chunk)
                file.write(chunk)
        if size != info.file_size:
            raise _refuse(path, "a member must have its declared size", "another size", "damaged")


def _refuse(
    path: Path,
    rule: str,
    received: object,
    kind: str,
    remedy: str = "make the archive again from the series folder",
) -> VolumeError:
    return VolumeError(rule, received=received, remedy=remedy, where=path, code=f"archive-{kind}")
