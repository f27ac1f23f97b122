"""Images without labels: every case of a dataset of any layout, or the images of a plain folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sparseg.datasets.dataset import Case, Dataset, require_sound
from sparseg.datasets.declaration import read_declaration
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.findings import Finding
from sparseg.datasets.layouts import dicom
from sparseg.datasets.layouts.common import (
    default_channels,
    distinct_names,
    image_files,
    is_image,
    subfolders,
)
from sparseg.datasets.read import is_dataset, read_dataset
from sparseg.datasets.survey import require_usable, survey, without_bad
from sparseg.errors import DatasetError
from sparseg.volumes.io import case_name, is_dicom_folder, read_volume

LAYOUT = "images"


def open_images(
    path: Path,
    *,
    training_only: bool = False,
    skip_bad: bool = False,
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> tuple[Dataset, list[CaseFacts]]:
    """List and measure the images of a dataset; labels are neither needed nor read.

    Args:
        path: Dataset of any layout, a folder of image files and DICOM series, or one image file.
        training_only: Leave the test cases of a dataset out.
        skip_bad: Leave out cases that cannot be used, and log their names, instead of refusing the dataset.
        workers: Processes that read; None takes all processors.
        on_case: Called with a case's name when it was read.

    Returns:
        A dataset of training cases without labels, and one record per case.

    Raises:
        DatasetError: no image, or one that cannot be used.
    """
    dataset = _without_labels(list_images(path), training_only=training_only)
    if not skip_bad:
        require_sound(dataset)
    if not dataset.training and not dataset.problems:
        raise DatasetError(
            "a dataset to pre-train on must hold images",
            received="none",
            remedy="give a folder with image files (.nii.gz, .nrrd, .mha) or DICOM series",
            where=path,
            code="dataset-empty",
        )
    reports = survey(dataset, workers=workers, on_case=on_case)
    if skip_bad:
        dataset, reports = without_bad(dataset, reports)
    return dataset, require_usable(dataset, reports)


def list_images(path: Path) -> Dataset:
    """Read a dataset of any layout; a folder that has none is taken as a folder of images.

    Raises:
        DatasetError: neither a dataset nor a folder with an image, or an unreadable folder.
    """
    if is_image(path.name) and path.is_file():
        return _plain_dataset(path.parent, [path])
    loose = image_files(path) if path.is_dir() else []
    known = is_dataset(path)
    # The DICOM layout knows nothing of image files beside the series.
    if loose and (not known or dicom.recognise(path)):
        return _plain_dataset(path, [*loose, *(f for f in subfolders(path) if is_dicom_folder(f))])
    return read_dataset(path, strict=False)


def _plain_dataset(root: Path, images: list[Path]) -> Dataset:
    declaration = read_declaration(root)
    cases = tuple(
        Case(case_name(name), (image,)) for name, image in zip(distinct_names(images), images, strict=True)
    )
    channels = declaration.channels or default_channels(read_volume(images[0]).num_channels)
    return Dataset(
        name=declaration.name or root.resolve().name,
        channels=channels,
        labels={},
        training=(),
        test=cases,
        root=root,
        layout=LAYOUT,
    )


def _without_labels(dataset: Dataset, *, training_only: bool) -> Dataset:
    """All cases as training cases; an image that only lacks its label is one of them."""
    whole = dataset.layout == LAYOUT or not dataset.training
    listed = dataset.cases if whole or not training_only else dataset.training
    found = [_image_without_label(problem, dataset) for problem in dataset.problems]
    cases = [replace(case, label=None, masks=(), fold=None) for case in listed]
    return replace(
        dataset,
        labels={},
        regions={},
        training=(*cases, *(case for case in found if case is not None)),
        test=(),
        problems=tuple(p for p, case in zip(dataset.problems, found, strict=True) if case is None),
    )


def _image_without_label(problem: Finding, dataset: Dataset) -> Case | None:
    """The case behind the finding "an image without a label"; None for other findings."""
    # With one file per channel the finding names only the first of them.
    if problem.code != "label-missing" or len(dataset.channels) != 1:
        return None
    root = dataset.root.parent if dataset.root.is_file() else dataset.root
    image = root / problem.file
    return Case(problem.case, (image,)) if problem.case and image.exists() else None
