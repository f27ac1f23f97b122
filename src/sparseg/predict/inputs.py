"""What the user's arguments mean: files, folders of files, DICOM series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparseg.errors import InputError, VolumeError
from sparseg.volumes.archive import is_archive
from sparseg.volumes.io import SUFFIXES, case_name, is_dicom_folder


@dataclass(frozen=True)
class PredictionCase:
    """One image to segment: its name, where it is, and where its labels go."""

    name: str
    image: Path
    output: Path


def collect_cases(inputs: Sequence[Path], out: Path, *, suffix: str = ".nii.gz") -> list[PredictionCase]:
    """Turn arguments into cases.

    Args:
        inputs: Image files, DICOM series as folders or .zip files, or folders that hold image files and
            series folders; a .zip within a folder is passed over, as it may hold anything.
        out: Output folder; labels are named `<case><suffix>`.
        suffix: Ending of the label files.

    Raises:
        InputError: a folder without images, two inputs of one name, or an output that would overwrite an
            input.
    """
    images = [image for path in inputs for image in _expand(path)]
    cases = [PredictionCase(name := _name_of(image), image, out / f"{name}{suffix}") for image in images]
    by_name: dict[str, Path] = {}
    for case in cases:
        # Some file systems do not tell capitals apart.
        other = by_name.setdefault(case.name.casefold(), case.image)
        if other is not case.image:
            raise InputError(
                "every input must have a name of its own, since its output is named after it",
                received=f"{other} and {case.image}",
                remedy="predict them into different folders",
                where=case.output,
            )
    if out.exists() and not out.is_dir():
        raise InputError("the output must be a folder", received="a file", remedy="choose another", where=out)
    sources = {image.resolve() for image in images}
    for case in cases:
        if case.output.resolve() in sources:
            raise InputError(
                "an output must not overwrite an input",
                where=case.output,
                remedy="choose another --out folder",
            )
    return cases


def _name_of(image: Path) -> str:
    return case_name(image.with_suffix("") if is_archive(image) else image)


def _expand(path: Path) -> list[Path]:
    if not path.is_dir() or _may_be_series(path):
        return [path]
    found = sorted(child for child in path.iterdir() if _is_case(child))
    if not found:
        raise InputError(
            "an input folder must hold NIfTI files or DICOM series",
            received="none of them",
            remedy="give image files, a DICOM series folder, or a folder of those",
            where=path,
        )
    return found


def _is_case(child: Path) -> bool:
    if child.name.startswith("."):
        return False
    # By name alone: a dangling link or a folder called x.nii.gz is a case that fails, not one that vanishes.
    return child.name.lower().endswith(SUFFIXES) or (child.is_dir() and _may_be_series(child))


def _may_be_series(folder: Path) -> bool:
    try:
        return is_dicom_folder(folder)
    except OSError:
        return True  # an error of this case when its turn comes, not one of all cases
    except VolumeError:
        # A file of it cannot be read: the images beside that file are cases of their own.
        return not any(child.name.lower().endswith(SUFFIXES) for child in folder.iterdir())
