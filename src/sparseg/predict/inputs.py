"""What the user's arguments mean: files, folders of files, DICOM series, datasets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparseg.datasets.read import is_dataset, read_dataset
from sparseg.errors import DatasetError, InputError, VolumeError
from sparseg.volumes.archive import is_archive
from sparseg.volumes.io import SUFFIXES, case_name, is_dicom_folder

logger = logging.getLogger("sparseg")
_LISTS = (".json", ".csv", ".tsv")
_LABEL_FAULTS = ("label-missing", "mask-missing")


@dataclass(frozen=True)
class PredictionCase:
    """One image to segment.

    Attributes:
        name: Names the output.
        image: File, series folder or .zip; the first channel where each has a file of its own.
        output: Where the labels go.
        channels: Files of the other channels, in order.
        series_uid: Series to take where the DICOM folder holds several.
    """

    name: str
    image: Path
    output: Path
    channels: tuple[Path, ...] = ()
    series_uid: str | None = None


def collect_cases(inputs: Sequence[Path], out: Path, *, suffix: str = ".nii.gz") -> list[PredictionCase]:
    """Turn arguments into cases.

    Args:
        inputs: Image files, DICOM series as folders or .zip files, folders that hold image files and
            series folders (a .zip within a folder is passed over, as it may hold anything), or datasets of
            any layout: of these the test cases, or all where there are none.
        out: Output folder; labels are named `<case><suffix>`.
        suffix: Ending of the label files.

    Raises:
        InputError: a folder without images, two inputs of one name, or an output that would overwrite an
            input.
        DatasetError: a dataset whose description cannot be read.
    """
    cases = [case for path in inputs for case in _expand(path, out, suffix)]
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
    sources = {path.resolve() for case in cases for path in (case.image, *case.channels)}
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


def _expand(path: Path, out: Path, suffix: str) -> list[PredictionCase]:
    if not path.is_dir() or _may_be_series(path):
        # A list of cases is told by its suffix: nothing else that ends so is an image.
        if path.is_file() and path.suffix.lower() in _LISTS:
            return _of_dataset(path, out, suffix)
        return [_case(path, out, suffix)]
    found = sorted(child for child in path.iterdir() if _is_case(child))
    if found:
        return [_case(child, out, suffix) for child in found]
    if is_dataset(path):
        return _of_dataset(path, out, suffix)
    raise InputError(
        "an input folder must hold NIfTI files or DICOM series, or be a dataset",
        received="none of them",
        remedy="give image files, a DICOM series folder, a folder of those, or a dataset",
        where=path,
    )


def _case(image: Path, out: Path, suffix: str) -> PredictionCase:
    name = _name_of(image)
    return PredictionCase(name, image, out / f"{name}{suffix}")


def _of_dataset(path: Path, out: Path, suffix: str) -> list[PredictionCase]:
    """The test cases of a dataset, all cases where it has none.

    Raises:
        DatasetError: a case whose image or a channel of it is missing. A missing label is no fault here, but
            such a case is neither a training nor a test case: its name is logged.
    """
    dataset = read_dataset(path, strict=False)
    for problem in dataset.problems:
        if problem.code not in _LABEL_FAULTS:
            raise DatasetError(
                "every image of a dataset to segment must be there",
                received=f"{problem.case or problem.file}: {problem.message}",
                remedy="complete the dataset, or give the image files themselves",
                where=path,
                code=problem.code,
            )
        logger.warning("left out %s: %s; give its image file itself", problem.case, problem.message)
    return [
        PredictionCase(
            case.name, case.images[0], out / f"{case.name}{suffix}", case.images[1:], case.series_uid
        )
        for case in dataset.test or dataset.training
    ]


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
