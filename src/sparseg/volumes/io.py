"""One entry for every supported kind of image, by file suffix or folder."""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparseg.errors import InputError, VolumeError
from sparseg.volumes.dicom_folder import is_dicom_folder
from sparseg.volumes.itk import ITK_SUFFIXES, data_files, read_itk
from sparseg.volumes.nifti import read_nifti
from sparseg.volumes.volume import Volume

__all__ = ["SUFFIXES", "case_name", "is_dicom_folder", "read_labels", "read_volume", "source_files"]

SUFFIXES = (".nii.gz", ".nii", *ITK_SUFFIXES)
_KINDS = "a .nii, .nii.gz, .nrrd, .mha or .mhd file"
_MAX_NAME = 100
_MAX_BYTES = 200


def read_volume(path: Path | str, **options: Any) -> Volume:
    """Read an image: a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.

    Args:
        path: File or folder.
        options: Keywords of `read_nifti` for a file (NRRD and MetaImage files state one orientation only, so
            `affine_choice` means nothing to them), of `read_dicom_series` for a folder.

    Returns:
        `[C, H, W, D]` float32 with its affine.

    Raises:
        VolumeError: missing, of an unsupported kind, or not readable.
        GeometryError: orientation or spacing missing, contradictory or not usable.
    """
    path = Path(path)
    if path.is_dir():
        # The DICOM library costs a quarter of a second, which a NIfTI file should not pay for.
        from sparseg.volumes.dicom import read_dicom_series

        return read_dicom_series(path, **options)
    if path.name.lower().endswith(SUFFIXES):
        return _read_file(path, options)
    if not path.exists():
        raise VolumeError(
            "the image must exist",
            received="no such file or folder",
            remedy="check the path",
            where=path,
            code="file-missing",
        )
    raise VolumeError(
        f"an image must be {_KINDS} or a folder with one DICOM series",
        received=f"a file ending in {path.suffix or 'nothing'}",
        remedy=_remedy(path.suffix.lower()),
        where=path,
        code="unsupported-format",
    )


def _remedy(suffix: str) -> str:
    if suffix in {".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"}:
        return "unpack the archive first"
    if suffix in {".dcm", ".ima", ""}:
        return "for DICOM give the folder that holds the series"
    return "convert it to .nii.gz, .nrrd or .mha"


def _read_file(path: Path, options: dict[str, Any]) -> Volume:
    if not path.name.lower().endswith(ITK_SUFFIXES):
        return read_nifti(path, **options)
    return read_itk(path, **{name: value for name, value in options.items() if name != "affine_choice"})


def read_labels(path: Path | str, **options: Any) -> Volume:
    """Read a label map `[1, H, W, D]` int32 from a NIfTI, NRRD or MetaImage file; ids are exact.

    A DICOM structure set or segmentation needs its image: see `dicom_labels.read_dicom_label_map`.

    Raises:
        VolumeError: missing, of an unsupported kind, or not readable.
        LabelError: ids that are negative, fractional or not finite.
        GeometryError: orientation or spacing missing, contradictory or not usable.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not path.name.lower().endswith(SUFFIXES)):
        raise VolumeError(
            f"labels must be {_KINDS}",
            received="a folder" if path.is_dir() else f"a file ending in {path.suffix or 'nothing'}",
            remedy="convert the segmentation to .nii.gz, .nrrd or .mha",
            where=path,
            code="unsupported-format",
        )
    return _read_file(path, {**options, "kind": "label"})


def source_files(path: Path | str) -> list[Path]:
    """Return the files that an image or label map is made of: several for a folder or a detached header."""
    path = Path(path)
    if path.is_dir():
        return sorted(path.iterdir())
    if path.suffix.lower() in (".nhdr", ".mhd"):
        # Whoever reads the image says what is wrong with its header.
        with suppress(InputError):
            return list(data_files(path))
    return [path]


def case_name(path: Path | str) -> str:
    """Return a safe name for outputs of this input: no suffix, separators or leading dash or dot.

    Letters of any script stay, everything else but `._-` and spaces becomes an underscore; at most 100
    characters and 200 bytes, so that suffixes fit the usual limit of 255.
    """
    name = Path(path).name or Path(path).resolve().name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    name = unicodedata.normalize("NFC", name)
    name = re.sub(r"[^\w. -]", "_", name).strip()
    name = re.sub(r"^[-. ]+", "", name)[:_MAX_NAME]
    name = name.encode()[:_MAX_BYTES].decode(errors="ignore").rstrip(". ")
    return name or "case"
