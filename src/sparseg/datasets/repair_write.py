"""One case of a repaired dataset: files repaired one by one, put in place, read again as training would."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import measure
from sparseg.datasets.findings import finding_of
from sparseg.datasets.load import load_case, load_image, load_labels
from sparseg.datasets.nonfinite import NONFINITE_MARK, without_warnings
from sparseg.datasets.repair_steps import (
    fill_nonfinite,
    reorient_label,
    resample_label,
    round_label,
)
from sparseg.errors import GeometryError, LabelError, SparsegError, VolumeError
from sparseg.volumes.atomic import write_atomically
from sparseg.volumes.geometry import require_same_grid
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.volume import Volume

_NIFTI = (".nii.gz", ".nii")
_CHUNK = 2**22
_MAX_ID = 2**16 - 1
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Job:
    """One case to write.

    Attributes:
        case: The source.
        name: What its files are called.
        split: "Tr" or "Ts", the end of the folder names.
        repairs: Names of the repairs to make.
        sound: Whether its files were read without fault, so that copies need not be read again.
    """

    case: Case
    name: str
    split: str
    repairs: frozenset[str]
    sound: bool


@dataclass(frozen=True)
class Built:
    """What became of it.

    Attributes:
        image: Path in the new dataset; empty if the case was left out.
        label: Path in the new dataset; empty without labels.
        details: (repair, what it changed).
        ids: Label ids found, where the case was read again.
        reason: Why it was left out; empty if it was not.
    """

    image: str = ""
    label: str = ""
    details: tuple[tuple[str, str], ...] = ()
    ids: tuple[int, ...] = ()
    reason: str = ""


def build_case(job: Job, *, dataset: Dataset, folder: Path) -> Built:
    """Write one case into the folders of a Decathlon dataset; a case that cannot be used leaves no file.

    Raises:
        VolumeError: the disk refuses; what is wrong with the case itself becomes `reason`.
    """
    # A name that says nothing: it would stay behind if the process were killed.
    scratch = folder / f".{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        return _build(job, dataset, folder, scratch)
    except SparsegError as error:
        if error.code == "write-failed":
            raise
        for path in (*_targets(job, folder, "images"), *_targets(job, folder, "labels")):
            path.unlink(missing_ok=True)
        return Built(reason=finding_of(error).message)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build(job: Job, dataset: Dataset, folder: Path, scratch: Path) -> Built:
    case, details = _repair_labels(job, scratch)
    if "fill-nonfinite" in job.repairs:
        case, filled = _fill_images(case, dataset, scratch)
        details += filled
    if "convert-units" in job.repairs:
        details.append(("convert-units", "lengths written in mm"))
    image, label = _place(case, dataset, job, folder)
    ids: tuple[int, ...] = ()
    if details or not job.sound:
        facts = measure(*load_case(Case(job.name, (image,), label), dataset))
        ids = tuple(facts.label_counts or ())
    relative = [path.relative_to(folder).as_posix() if path else "" for path in (image, label)]
    return Built(relative[0], relative[1], tuple(details), ids)


def _targets(job: Job, folder: Path, kind: str) -> tuple[Path, ...]:
    """The names a file can get, in the order of the suffixes."""
    return tuple(folder / f"{kind}{job.split}" / f"{job.name}{suffix}" for suffix in _NIFTI)


def _repair_labels(job: Job, scratch: Path) -> tuple[Case, list[tuple[str, str]]]:
    """The case with repaired label files, each on its own."""
    case = job.case
    wanted = job.repairs & {"round-label", "reorient-label", "resample-label"}
    if not wanted or not case.labelled:
        return case, []
    image = _read_marked(case.images[0], case.series_uid)
    details: list[tuple[str, str]] = []
    paths = []
    for number, path in enumerate(case.label_files):
        label, done = _repair_label(path, image, wanted)
        repaired = scratch / f"label{number}.nii.gz"
        write_label_map(repaired, _compact_ids(label, path), label.affine)
        paths.append(repaired)
        structure = f"{case.masks[number][0]}: " if case.masks else ""
        details += [(repair, structure + text) for repair, text in done]
    if case.masks:
        names = [name for name, _ in case.masks]
        return replace(case, masks=tuple(zip(names, paths, strict=True))), details
    return replace(case, label=paths[0]), details


def _repair_label(path: Path, image: Volume, wanted: frozenset[str]) -> tuple[Volume, list[tuple[str, str]]]:
    done = []
    if "round-label" in wanted:
        label, text = round_label(read_volume(path))
        done.append(("round-label", text))
    else:
        label = read_labels(path)
    for repair, step in (("reorient-label", reorient_label), ("resample-label", resample_label)):
        # Of several masks some may lie right; reordering, which is exact, comes first.
        if repair in wanted and not _on_grid(label, image):
            label, text = step(label, image)
            done.append((repair, text))
    return label, done


def _on_grid(label: Volume, image: Volume) -> bool:
    try:
        require_same_grid(image, label)
    except GeometryError:
        return False
    return True


def _fill_images(case: Case, dataset: Dataset, scratch: Path) -> tuple[Case, list[tuple[str, str]]]:
    """The case with filled image files."""
    paths, details = [], []
    for number, path in enumerate(case.images):
        image = _read_marked(path, case.series_uid)
        if image.array.max() < NONFINITE_MARK:
            paths.append(path)
            continue
        filled, text = fill_nonfinite(image, load_labels(case, dataset, image))
        repaired = scratch / f"image{number}.nii.gz"
        write_image(repaired, filled)
        paths.append(repaired)
        details.append(("fill-nonfinite", f"{path.name}: {text}" if len(case.images) > 1 else text))
    return replace(case, images=tuple(paths)), details


def _read_marked(path: Path, series_uid: str | None) -> Volume:
    """An image with `NONFINITE_MARK` where it is not finite."""
    if path.is_dir():
        return read_volume(path, **({} if series_uid is None else {"series_uid": series_uid}))
    with without_warnings():
        return read_volume(path, nonfinite=NONFINITE_MARK)


def _place(case: Case, dataset: Dataset, job: Job, folder: Path) -> tuple[Path, Path | None]:
    """Copy what is NIfTI and can stay as it is, convert the rest; returns image and label in the dataset."""
    images, labels = (_targets(job, folder, kind) for kind in ("images", "labels"))
    fresh = "convert-units" in job.repairs
    image_path = None if fresh or len(case.images) > 1 else _copied(case.images[0], images)
    label_path = None if fresh or case.label is None else _copied(case.label, labels)
    convert_label = case.labelled and label_path is None
    if image_path is None or convert_label:
        image = load_image(case, dataset)
        if image_path is None:
            image_path = images[0]
            write_image(image_path, Volume(_compact_values(image.array), image.affine, image.source))
        converted = load_labels(case, dataset, image) if convert_label else None
        if converted is not None:
            label_path = labels[0]
            ids = _compact_ids(converted, case.label_files[0])
            write_label_map(label_path, ids, converted.affine, label_names=dataset.labels)
    return image_path, label_path


def _copied(path: Path, targets: tuple[Path, ...]) -> Path | None:
    """Copy a NIfTI file and return where to; None, and nothing copied, for other formats."""
    for suffix, target in zip(_NIFTI, targets, strict=True):
        if path.is_file() and path.name.lower().endswith(suffix):
            copy_file(path, target)
            return target
    return None


def _compact_ids(labels: Volume, where: Path) -> np.ndarray:
    """Ids `[H,W,D]` as uint8 or uint16."""
    largest = int(labels.array.max())
    if largest > _MAX_ID:
        raise LabelError(
            f"label ids must be at most {_MAX_ID} to be written",
            received=largest,
            remedy="renumber the labels",
            where=where,
            code="label-ids",
        )
    ids: np.ndarray = labels.array[0].astype(np.uint8 if largest < 256 else np.uint16)
    return ids


def _compact_values(array: np.ndarray) -> np.ndarray:
    """The same values as int16 where it holds them exactly, such as the HU of a CT."""
    if array.min() < _INT16.min or array.max() > _INT16.max:
        return array
    whole = array.astype(np.int16)
    return whole if np.array_equal(whole, array) else array


def copy_file(source: Path, target: Path) -> None:
    """Copy byte for byte; the copy is read back before it gets its name.

    Raises:
        VolumeError: the source cannot be opened, or the target cannot be written.
    """
    try:
        file = source.open("rb")
    except OSError as error:
        raise VolumeError(
            "the file must exist and be readable",
            received=error.strerror,
            remedy="check the path",
            where=source,
            code="file-unreadable",
        ) from None
    digest = hashlib.sha256()

    def write(copy: BinaryIO) -> None:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)

    def verify(temporary: Path) -> None:
        with temporary.open("rb") as copy:
            if hashlib.file_digest(copy, "sha256").digest() != digest.digest():
                raise OSError("the file read back differs")

    with file:
        write_atomically(target, write, verify)
