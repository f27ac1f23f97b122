"""`check --fix`: a new dataset of copies with the safe repairs made and everything else left out by name.

The source is never touched. NIfTI files that need no repair are copied byte for byte, headers included, so
what a user's file says about a patient is still in its copy; every file written anew has a fresh header.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.findings import Finding
from sparseg.datasets.inspect import CaseReport
from sparseg.datasets.parallel import map_items
from sparseg.datasets.repair_write import Built, Job, build_case
from sparseg.datasets.survey import reading_bytes
from sparseg.errors import DatasetError
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.io import case_name

DROP = "drop-duplicate"
REPAIRS = (
    "reorient-label",
    "resample-label",
    "round-label",
    "fill-nonfinite",
    "convert-units",
    DROP,
)
_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
_FORMAT = 1


@dataclass(frozen=True)
class Repair:
    """One repair made.

    Attributes:
        case: Name of the case.
        repair: One of `REPAIRS`.
        detail: What it changed, with figures.
    """

    case: str
    repair: str
    detail: str


@dataclass(frozen=True)
class Exclusion:
    """One case left out: its name and why."""

    case: str
    reason: str


@dataclass(frozen=True)
class RepairResult:
    """What became of a dataset.

    Attributes:
        root: The new dataset.
        repaired: Every repair, in the order of the cases.
        excluded: Every case left out for a fault.
        copied: Names of the cases taken over without repair.
    """

    root: Path
    repaired: tuple[Repair, ...]
    excluded: tuple[Exclusion, ...]
    copied: tuple[str, ...]


def repair_dataset(
    dataset: Dataset,
    reports: Sequence[CaseReport],
    findings: Sequence[Finding],
    to: Path,
    *,
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> RepairResult:
    """Write a repaired copy of a dataset in the Decathlon layout, with `repairs.json`.

    Cases without an error are copied. Where every error of a case has a safe repair, all are made and the
    case is read again as training would; otherwise it is left out. `to` appears only when it is complete.

    Args:
        dataset: The source, read with `strict=False`.
        reports: One per case, from `survey`.
        findings: Of the whole check; those of `reports` and `dataset.problems` are added.
        to: Folder to make; must be new or empty, and neither in the source nor around it.
        workers: Processes; None takes all processors.
        on_case: Called with a case's name when it is done.

    Raises:
        DatasetError: `to` is not usable, or no labelled case is left.
        VolumeError: the disk refuses.
    """
    require_new(to, dataset)
    by_case = _by_case([*findings, *(f for r in reports for f in r.findings), *dataset.problems])
    jobs, dropped, excluded = _plan(dataset, reports, by_case)
    part = to.parent / f".{to.name}.{uuid.uuid4().hex}.part"
    _make_folders(part)
    try:
        bare = replace(dataset, training=(), test=(), problems=())
        built = map_items(
            partial(build_case, dataset=bare, folder=part),
            jobs,
            workers=workers,
            bytes_each=max((2 * reading_bytes(job.case) for job in jobs), default=0),
            on_done=lambda index: on_case(jobs[index].case.name),
        )
        pairs = list(zip(jobs, built, strict=True))
        excluded += [Exclusion(job.case.name, done.reason) for job, done in pairs if done.reason]
        kept = [(job, done) for job, done in pairs if not done.reason]
        repaired = [Repair(job.case.name, *detail) for job, done in kept for detail in done.details]
        copied = tuple(job.case.name for job, done in kept if not done.details)
        order = {case.name: number for number, case in enumerate(dataset.cases)}
        listed = sorted([*dropped, *repaired], key=lambda repair: order[repair.case])
        # Cases that the layout could not even list come last.
        excluded.sort(key=lambda exclusion: order.get(exclusion.case, len(order)))
        result = RepairResult(to, tuple(listed), tuple(excluded), copied)
        _write_json(part / "dataset.json", _description(dataset, reports, kept))
        _write_json(part / "repairs.json", _record(dataset, result))
        _publish(part, to)
    finally:
        # After a success there is nothing of that name.
        shutil.rmtree(part, ignore_errors=True)
    return result


def _by_case(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings by case, each once: the same one may name its file in full or relative to the dataset."""
    once = {(f.case, f.code, f.message): f for f in reversed(list(findings))}
    by_case: dict[str, list[Finding]] = {}
    for finding in reversed(once.values()):
        by_case.setdefault(finding.case, []).append(finding)
    return by_case


def _plan(
    dataset: Dataset, reports: Sequence[CaseReport], by_case: dict[str, list[Finding]]
) -> tuple[list[Job], list[Repair], list[Exclusion]]:
    """Sort the cases into those to write, duplicates to drop, and those to leave out."""
    sound = {report.case for report in reports if report.facts is not None}
    training = set(map(id, dataset.training))
    jobs, dropped, excluded = [], [], []
    users: dict[str, int] = {}
    for case in dataset.cases:
        users[_file_name(case)] = users.get(_file_name(case), 0) + 1
    for case in dataset.cases:
        own = by_case.get(case.name, [])
        reason = _beyond_repair(own)
        if users[_file_name(case)] > 1:
            reason = f"{users[_file_name(case)]} cases share the name '{case.name}'"
        repairs = frozenset(finding.repair for finding in own if finding.repair)
        if reason:
            excluded.append(Exclusion(case.name, reason))
        elif DROP in repairs:
            message = next(finding.message for finding in own if finding.repair == DROP)
            dropped.append(Repair(case.name, DROP, f"left out: {message}"))
        else:
            split = "Tr" if id(case) in training else "Ts"
            name = case_name(f"{case.name}.nii.gz")
            jobs.append(Job(case, name, split, repairs, case.name in sound))
    known = {case.name for case in dataset.cases} | {""}
    excluded += [
        Exclusion(name, _beyond_repair(own))
        for name, own in by_case.items()
        if name not in known
        if _beyond_repair(own)
    ]
    return jobs, dropped, excluded


def _beyond_repair(findings: Iterable[Finding]) -> str:
    """The first error that no repair is known for, with the number of others; empty if there is none."""
    fatal = [f for f in findings if f.severity == "error" and f.repair not in REPAIRS]
    if not fatal:
        return ""
    others = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
    return f"{fatal[0].code}: {fatal[0].message}{others}"


def _file_name(case: Case) -> str:
    # Some file systems do not tell capitals apart.
    return case_name(f"{case.name}.nii.gz").casefold()


def require_new(to: Path, dataset: Dataset) -> None:
    """Refuse a target that holds files, or that lies in the source or around it.

    Raises:
        DatasetError: names the folder.
    """
    source = (dataset.root if dataset.root.is_dir() else dataset.root.parent).resolve()
    target = to.resolve()
    received = ""
    if target == source or source in target.parents or target in source.parents:
        received = f"a folder in, around or equal to {dataset.root}"
    elif to.is_dir() and any(to.iterdir()):
        received = "a folder that holds files"
    elif to.exists() and not to.is_dir():
        received = "a file"
    if received or not to.name:
        raise DatasetError(
            "the repaired dataset must go to a new or empty folder beside the source",
            received=received or repr(str(to)),
            remedy="name another folder with --to",
            where=to,
            code="repair-target",
        )


def _make_folders(part: Path) -> None:
    try:
        for name in _FOLDERS:
            (part / name).mkdir(parents=True)
    except OSError as error:
        raise _unwritable(part, error) from error


def _publish(part: Path, to: Path) -> None:
    try:
        for name in _FOLDERS:
            if not any((part / name).iterdir()):
                (part / name).rmdir()
        if to.is_dir():
            to.rmdir()
        part.replace(to)
    except OSError as error:
        raise _unwritable(to, error) from error


def _unwritable(path: Path, error: OSError) -> DatasetError:
    return DatasetError(
        "the folder of the repaired dataset must be writable",
        received=error.strerror,
        remedy="name another folder with --to",
        where=path,
        code="write-failed",
    )


def _description(
    dataset: Dataset, reports: Sequence[CaseReport], kept: Sequence[tuple[Job, Built]]
) -> dict[str, Any]:
    """Content of dataset.json.

    Raises:
        DatasetError: no labelled training case, or nothing but background.
    """
    if not any(job.split == "Tr" for job, _ in kept):
        raise DatasetError(
            "a repaired dataset must keep at least one labelled case",
            received="none is usable or can be repaired",
            remedy="correct the cases that check lists",
            where=dataset.root,
            code="repair-nothing",
        )
    content: dict[str, Any] = {
        "name": dataset.name,
        "channel_names": {str(number): name for number, name in enumerate(dataset.channels)},
        "labels": {str(number): name for number, name in _labels(dataset, reports, kept).items()},
    }
    if dataset.regions:
        content["regions"] = {name: list(ids) for name, ids in dataset.regions.items()}
    for key, split in (("training", "Tr"), ("test", "Ts")):
        content[key] = [_entry(job.case, done) for job, done in kept if job.split == split]
    return content


def _labels(
    dataset: Dataset, reports: Sequence[CaseReport], kept: Sequence[tuple[Job, Built]]
) -> dict[int, str]:
    """Declared labels; without any, the ids found in the cases that were kept."""
    if dataset.labels:
        return dataset.labels
    names = {job.case.name for job, _ in kept}
    found = {label_id for _, done in kept for label_id in done.ids}
    for report in reports:
        if report.case in names and report.facts is not None:
            found |= set(report.facts.label_counts or ())
    if not found - {0}:
        raise DatasetError(
            "a dataset must hold at least one labelled structure",
            received="background only",
            remedy="add label files, or declare the labels in sparseg.yaml",
            where=dataset.root,
            code="labels-none",
        )
    return {0: "background", **{number: f"label {number}" for number in sorted(found - {0})}}


def _entry(case: Case, done: Built) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": done.image}
    if done.label:
        entry["label"] = done.label
    # Cases of one patient must still not part over training and validation.
    if case.patient != case.name:
        entry["subject"] = case.patient
    if case.fold is not None:
        entry["fold"] = case.fold
    return entry


def _record(dataset: Dataset, result: RepairResult) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "source": {"name": dataset.name, "layout": dataset.layout},
        "repairs": [asdict(repair) for repair in result.repaired],
        "excluded": [asdict(exclusion) for exclusion in result.excluded],
        "copied": list(result.copied),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # The name of a case left out may not be valid text in the file system's encoding.
    write_bytes_atomically(path, text.encode(errors="replace"))
