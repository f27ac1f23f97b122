"""Which files of a folder are DICOM, told by their first bytes and without a DICOM library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparseg.errors import VolumeError

_START = 132
_OTHER_SUFFIXES = frozenset(
    {".txt", ".json", ".xml", ".csv", ".tsv", ".md", ".html", ".htm", ".log", ".ini", ".yaml", ".yml"}
    | {".pdf", ".png", ".jpg", ".jpeg", ".gif", ".bmp", ".exe", ".inf", ".db", ".nii", ".gz", ".zip"}
    | {".nrrd", ".nhdr", ".mha", ".mhd"}
)


def is_dicom_file(path: Path | str) -> bool:
    """Tell whether `path` is a DICOM file: the mark DICM at byte 128.

    Raises:
        VolumeError: the file is not readable.
    """
    path = Path(path)
    return path.is_file() and _is_dicom(_start(path))


def is_dicom_folder(path: Path | str) -> bool:
    """Tell whether `path` is a folder that directly holds at least one DICOM file."""
    path = Path(path)
    return path.is_dir() and any(_is_dicom(_start(item)) for item in path.iterdir() if item.is_file())


def walk_dicom(root: Path, *, max_depth: int = 6) -> Iterator[Path]:
    """Yield the DICOM files in `root` and up to `max_depth` folders below, by name; hidden ones left out.

    Files that cannot be opened are among them, so that whoever reads them says so.
    """
    entries = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    for path in entries:
        other = path.suffix.lower() in _OTHER_SUFFIXES or path.name.upper() == "DICOMDIR"
        if not other and _may_be_dicom(path):
            yield path
    for path in entries:
        # A link to a folder further up would lead round and round.
        circular = path.is_symlink() and root.resolve().is_relative_to(path.resolve())
        if max_depth > 0 and path.is_dir() and not circular:
            yield from walk_dicom(path, max_depth=max_depth - 1)


def dicom_files(folder: Path) -> Iterator[Path]:
    """Yield the DICOM files directly in `folder`, by name.

    Raises:
        VolumeError: a file that is neither DICOM nor clearly something else, or not readable.
    """
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.name.upper() == "DICOMDIR":
            continue
        start = _start(path)
        if _is_dicom(start):
            yield path
        elif path.suffix.lower() not in _OTHER_SUFFIXES:
            raise VolumeError(
                "every file of a series must be DICOM (mark DICM at byte 128)",
                received=f"{len(start)} first bytes {start[:4].hex()}",
                remedy="copy it again if it is cut short, or move it out of the folder",
                where=path,
                code="dicom-not-dicom",
            )


def _may_be_dicom(path: Path) -> bool:
    try:
        return is_dicom_file(path)
    except VolumeError:
        return True


def _is_dicom(start: bytes) -> bool:
    return start[128:] == b"DICM"


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError as error:
        raise VolumeError(
            "the file must be readable",
            received=error.strerror,
            remedy="check its permissions",
            where=path,
            code="file-unreadable",
        ) from None
