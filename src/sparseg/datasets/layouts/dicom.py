"""A folder of DICOM series, with structure sets (RTSTRUCT) and segmentations (SEG) anywhere among them.

A labelled series is a training case. A study without labels is a test case: its CT, MR or PET series with the
most slices. What is wrong within a series (gaps, tilt, mixtures) is found when the case is read.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.findings import Finding, finding_of
from sparseg.datasets.layouts.common import problem
from sparseg.errors import VolumeError
from sparseg.volumes.dicom_folder import walk_dicom
from sparseg.volumes.dicom_labels import dicom_label_names
from sparseg.volumes.io import case_name

if TYPE_CHECKING:
    from sparseg.volumes.dicom_contents import DicomContents

NAME = "DICOM"
NEEDS = "a folder with DICOM series in it or below it"

_IMAGES = ("CT", "MR", "PT")
_LABELS = ("RTSTRUCT", "SEG")


@dataclass(frozen=True)
class _Series:
    """Files of one SeriesInstanceUID in one folder, localizers left out."""

    folder: Path
    first: DicomContents
    num_slices: int
    alone: bool = True
    labels: list[DicomContents] = field(default_factory=list)


def recognise(path: Path) -> bool:
    """A folder with a DICOM file in it or up to six folders below."""
    return path.is_dir() and next(walk_dicom(path), None) is not None


def read(path: Path, declaration: Declaration) -> Dataset:
    """List the series and what labels them.

    Labels, where none are declared, are the names of all structures in alphabetical order, ids from 1.
    """
    contents, problems = _read_headers(path)
    series = _series(contents)
    for label in (item for item in contents if item.modality in _LABELS):
        match = _match(label, series)
        if match is None:
            problems.append(_unmatched(label, path))
        else:
            match.labels.append(label)
    modality = _usual_modality(series)
    chosen = [item for item in series if item.labels] + _unlabelled(series, modality)
    cases: list[Case] = []
    structures: set[str] = set()
    for item, name, subject in zip(chosen, _names(chosen, path), _subjects(chosen, path), strict=True):
        fault = _fault(item, series, name, modality, path)
        if fault is None and not declaration.labels:
            fault = _collect(item, structures, name)
        if fault is None:
            cases.append(_case(item, name, subject))
        else:
            problems.append(fault)
    return Dataset(
        name=declaration.name or path.resolve().name,
        channels=declaration.channels or (modality,),
        labels=declaration.labels or _label_table(structures),
        training=tuple(case for case in cases if case.labelled),
        test=tuple(case for case in cases if not case.labelled),
        root=path,
        regions=declaration.regions if declaration.labels else {},
        layout=NAME,
        problems=tuple(problems),
    )


def _case(item: _Series, name: str, subject: str) -> Case:
    label = item.labels[0].path if item.labels else None
    uid = None if item.alone else item.first.series
    return Case(name, (item.folder,), label, subject=subject, series_uid=uid)


def _read_headers(root: Path) -> tuple[list[DicomContents], list[Finding]]:
    # The DICOM library costs a quarter of a second, which other layouts should not pay for.
    from sparseg.volumes.dicom_contents import read_contents

    contents, problems = [], []
    for file in walk_dicom(root):
        try:
            contents.append(read_contents(file))
        except VolumeError as error:
            problems.append(finding_of(error))
    return contents, problems


def _series(contents: Iterable[DicomContents]) -> list[_Series]:
    groups: dict[tuple[Path, str], list[DicomContents]] = defaultdict(list)
    for item in contents:
        if item.modality in _IMAGES and not item.localizer:
            groups[item.path.parent, item.series].append(item)
    per_folder = Counter(folder for folder, _ in groups)
    return [
        _Series(folder, members[0], sum(item.num_slices for item in members), per_folder[folder] == 1)
        for (folder, _), members in groups.items()
    ]


def _match(label: DicomContents, series: Sequence[_Series]) -> _Series | None:
    """The series a label belongs to: the one it names, else one of its study and frame of reference."""
    named = [item for item in series if item.first.series in label.referenced]
    near = [
        item
        for item in series
        if item.first.study == label.study and item.first.frames_of_reference & label.frames_of_reference
    ]
    # A label that names series which are not there was not drawn on what is there.
    return _largest(named if label.referenced else near)


def _largest(series: Sequence[_Series]) -> _Series | None:
    return max(series, key=lambda item: item.num_slices, default=None)


def _unlabelled(series: Sequence[_Series], modality: str) -> list[_Series]:
    """The largest series of the modality in every study that has no labels."""
    studies: dict[tuple[str, str], list[_Series]] = defaultdict(list)
    for item in series:
        # Without a study UID the folder stands in for it.
        studies[item.first.patient, item.first.study or str(item.folder)].append(item)
    free = [members for members in studies.values() if not any(item.labels for item in members)]
    return [
        best
        for members in free
        if (best := _largest([item for item in members if item.first.modality == modality]))
    ]


def _fault(item: _Series, series: Sequence[_Series], name: str, modality: str, root: Path) -> Finding | None:
    copies = [other for other in series if other.first.series == item.first.series != ""]
    if len(copies) > 1:
        message = f"a series must be in one folder; received {len(copies)} folders"
        remedy = "move its files together, or remove the copy"
        return problem("dicom-series-folders", message, remedy, file=item.folder, root=root, case=name)
    if item.first.modality != modality:
        message = f"all labelled images must be of one modality ({modality}); received {item.first.modality}"
        remedy = "make a dataset for each modality"
        return problem("dicom-modality", message, remedy, file=item.folder, root=root, case=name)
    if len(item.labels) > 1:
        files = ", ".join(label.path.name for label in item.labels)
        message = (
            f"a series must have one structure set or segmentation; received {len(item.labels)}: {files}"
        )
        remedy = "keep the one to use in the folder"
        return problem("label-several", message, remedy, file=item.folder, root=root, case=name)
    for label in item.labels:
        frames = item.first.frames_of_reference, label.frames_of_reference
        if all(frames) and not frames[0] & frames[1]:
            message = "labels must share the frame of reference of their series; received another"
            remedy = "export the labels again together with the series"
            return problem("label-frame", message, remedy, file=label.path, root=root, case=name)
    return None


def _unmatched(label: DicomContents, root: Path) -> Finding:
    named = "the series it names is not there" if label.referenced else "it names no series of its study"
    message = f"labels must belong to a CT, MR or PET series of the dataset; {named}"
    return problem(
        "label-unmatched", message, "add the series, or remove the file", file=label.path, root=root
    )


def _collect(item: _Series, structures: set[str], name: str) -> Finding | None:
    """Add the names of a series' structures, or say what is wrong with their file."""
    try:
        structures.update(*(dicom_label_names(label.path) for label in item.labels))
    except VolumeError as error:
        return finding_of(error, case=name)
    return None


def _label_table(structures: Iterable[str]) -> dict[int, str]:
    names = sorted(structures, key=lambda name: (name.casefold(), name))
    return {0: "background", **dict(enumerate(names, start=1))} if names else {}


def _usual_modality(series: Sequence[_Series]) -> str:
    """The modality of most labelled series, or of most others."""
    counts = Counter(item.first.modality for item in series if item.labels)
    counts = counts or Counter(item.first.modality for item in series)
    return max(counts, key=lambda modality: (counts[modality], modality), default=_IMAGES[0])


def _names(series: Sequence[_Series], root: Path) -> list[str]:
    """Names after the folders from the dataset down, never after what the headers say of the patient."""
    names = [case_name("_".join(item.folder.relative_to(root).parts) or root.resolve()) for item in series]
    counts = Counter(name.casefold() for name in names)
    return [
        name if counts[name.casefold()] == 1 else f"{name}_{_short_hash(item, root)}"
        for name, item in zip(names, series, strict=True)
    ]


def _short_hash(item: _Series, root: Path) -> str:
    text = f"{item.folder.relative_to(root)}\n{item.first.series}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def _subjects(series: Sequence[_Series], root: Path) -> list[str]:
    """Who each series is of: PatientID, or the top folder where anonymised data have none or one for all."""
    tops = [(item.folder.relative_to(root).parts or ("",))[0] for item in series]
    patients = [item.first.patient for item in series]
    if len(set(patients)) == 1 and len(set(tops)) > 1:
        return tops
    return [patient or top for patient, top in zip(patients, tops, strict=True)]
