"""A case that cannot be loaded, read again part by part: every fault, where it is, what would repair it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparseg.datasets import safe_repairs
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.findings import Finding, finding_of
from sparseg.datasets.label_table import require_known_ids
from sparseg.datasets.load import load_image, load_labels
from sparseg.datasets.nonfinite import NONFINITE_MARK, without_warnings
from sparseg.errors import SparsegError
from sparseg.volumes.geometry import require_same_grid, voxel_to_world
from sparseg.volumes.io import SUFFIXES, read_labels, read_volume
from sparseg.volumes.volume import Volume

Position = tuple[float, float, float]
Result = TypeVar("Result")
# Ends of the codes of errors about numbers, which can still be read and shown.
_NONFINITE, _LABEL_IDS = "-nonfinite", "label-ids"


def diagnose(case: Case, dataset: Dataset) -> tuple[Finding, ...]:
    """Return all that keeps a case from being used: of its images and of its labels, not only the first."""
    parts, findings = _read_images(case)
    if not findings:
        findings = _image_findings(case, dataset, parts)
    grid = parts[0] if parts else None
    labels, label_findings = _read_case_labels(case, dataset, grid)
    if findings and not label_findings:
        findings = [_with_filling(finding, case, parts, labels) for finding in findings]
    return (*findings, *label_findings)


def _read_images(case: Case) -> tuple[list[Volume], list[Finding]]:
    """Read what can be read of the images; an image with NaN counts as read, and as a finding."""
    options = {} if case.series_uid is None else {"series_uid": case.series_uid}
    parts: list[Volume] = []
    findings: list[Finding] = []
    for path in case.images:
        volume, error = _attempt(partial(read_volume, path, **options))
        if error is not None:
            finding = _finding(error, case, path)
            if error.code.endswith(_NONFINITE) and path.is_file():
                volume, _ = _attempt(partial(_read_marked, path))
            if volume is not None:
                finding = replace(finding, position_mm=_first(_marked(volume), volume))
            findings.append(finding)
        if volume is not None:
            parts.append(volume)
    return parts, findings


def _read_marked(path: Path) -> Volume:
    """The numbers of an image or label file as float32, `NONFINITE_MARK` where they are not finite."""
    with without_warnings():
        return read_volume(path, nonfinite=NONFINITE_MARK)


def _marked(volume: Volume) -> np.ndarray:
    mask: np.ndarray = volume.array >= NONFINITE_MARK
    return mask


def _image_findings(case: Case, dataset: Dataset, parts: list[Volume]) -> list[Finding]:
    """Faults between images that can all be read: grids that differ, the number of channels."""
    for path, part in zip(case.images[1:], parts[1:], strict=True):
        _, error = _attempt(partial(require_same_grid, parts[0], part, what="the channels of a case"))
        if error is not None:
            return [replace(_finding(error, case, path), position_mm=_middle(part))]
    _, error = _attempt(partial(load_image, case, dataset))
    return [] if error is None else [_finding(error, case, case.image)]


def _read_case_labels(
    case: Case, dataset: Dataset, image: Volume | None
) -> tuple[Volume | None, list[Finding]]:
    """Read the labels as training would; where that fails, file by file and as far as they can be read."""
    error = None
    if image is not None:
        labels, error = _attempt(partial(load_labels, case, dataset, image))
        if error is None:
            return labels, []
    labels, findings = None, []
    for path in case.label_files:
        if path.is_dir() or not path.name.lower().endswith(SUFFIXES):
            continue
        labels, failure = _attempt(partial(read_labels, path))
        if failure is not None:
            labels, finding = _odd_label(failure, case, path)
            findings.append(finding)
        if labels is not None:
            findings += _label_findings(case, dataset, image, labels, path)
    if error is not None and not findings:
        findings.append(_finding(error, case, case.label_files[0]))
    return labels, findings


def _odd_label(error: SparsegError, case: Case, path: Path) -> tuple[Volume | None, Finding]:
    """The finding of a label file that was refused; with its ids, where these are whole but for rounding."""
    finding = _finding(error, case, path)
    if error.code != _LABEL_IDS:
        return None, finding
    numbers, _ = _attempt(partial(_read_marked, path))
    if numbers is None:
        return None, finding
    bad = (numbers.array < 0) | (numbers.array != np.rint(numbers.array)) | _marked(numbers)
    repair = safe_repairs.rounding_repair(numbers.array)
    finding = replace(finding, position_mm=_first(bad, numbers), repair=repair)
    if not repair:
        return None, finding
    return Volume(np.rint(numbers.array).astype(np.int32), numbers.affine, numbers.source), finding


def _label_findings(
    case: Case, dataset: Dataset, image: Volume | None, labels: Volume, path: Path
) -> list[Finding]:
    """Faults of a label file that can be read: another grid than the image's, ids that nobody declared."""
    findings = []
    if image is not None:
        _, error = _attempt(partial(require_same_grid, image, labels, what="image and labels"))
        if error is not None:
            repair = safe_repairs.grid_repair(image, labels)
            finding = _finding(error, case, path)
            findings.append(replace(finding, position_mm=_centroid(labels), repair=repair))
    if dataset.labels and case.label is not None:
        _, error = _attempt(partial(require_known_ids, labels.array, dataset.labels, where=path))
        if error is not None:
            unknown = ~np.isin(labels.array, list(dataset.labels))
            findings.append(replace(_finding(error, case, path), position_mm=_first(unknown, labels)))
    return findings


def _with_filling(finding: Finding, case: Case, parts: list[Volume], labels: Volume | None) -> Finding:
    """Add the repair of voxels that are not finite, where the labels could be read to compare."""
    if not finding.code.endswith(_NONFINITE) or (case.labelled and labels is None):
        return finding
    bad = [_marked(part) for part in parts if part.source == finding.file]
    same = labels is None or all(part.shape == labels.shape for part in parts)
    return replace(finding, repair=safe_repairs.filling_repair(bad[0], labels) if bad and same else "")


def _attempt(call: Callable[[], Result]) -> tuple[Result | None, SparsegError | None]:
    try:
        return call(), None
    except SparsegError as error:
        return None, error


def _finding(error: SparsegError, case: Case, path: Path) -> Finding:
    """The finding of an error, on one file; a damaged slice of a DICOM folder keeps its own name."""
    finding = finding_of(error, case=case.name)
    inside = Path(finding.file).is_relative_to(path) if finding.file else False
    return finding if inside else replace(finding, file=str(path))


def _first(mask: np.ndarray, volume: Volume) -> Position | None:
    """World position of the first marked voxel of `[C,H,W,D]`."""
    index = int(mask.argmax())
    if not mask.flat[index]:
        return None
    return _world(volume, np.unravel_index(index, mask.shape)[1:])


def _centroid(labels: Volume) -> Position:
    """World position of the middle of all labelled voxels, of the grid where nothing is labelled."""
    voxels = np.nonzero(labels.array[0])
    if not voxels[0].size:
        return _middle(labels)
    return _world(labels, [float(axis.mean()) for axis in voxels])


def _middle(volume: Volume) -> Position:
    return _world(volume, [(size - 1) / 2 for size in volume.shape])


def _world(volume: Volume, voxel: Any) -> Position:
    x, y, z = (round(float(value), 3) for value in voxel_to_world(volume.affine, np.asarray(voxel, float)))
    return (x, y, z)
