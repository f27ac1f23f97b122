"""All cases of a dataset read once, in parallel; what was measured is remembered while the files stay."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.inspect import CaseReport, inspect_case
from sparseg.datasets.parallel import map_items
from sparseg.datasets.sample_archive import default_cache
from sparseg.errors import DatasetError, VolumeError
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.io import source_files

logger = logging.getLogger("sparseg")
# Changes whenever the same file would give other facts.
_VERSION = 2


def survey(
    dataset: Dataset,
    *,
    memory: Path | None = None,
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> list[CaseReport]:
    """Inspect every case, in the order of `dataset.cases`.

    Args:
        dataset: Read with `strict=False` if faults are to be reported, not raised.
        memory: Folder that remembers the facts of faultless cases, keyed by path, size and time of their
            files; holds no names. None takes `facts` in the user's cache folder.
        workers: Processes; None takes all processors.
        on_case: Called with a case's name when it is done.
    """
    folder = default_cache() / "facts" if memory is None else memory
    cases = dataset.cases
    keys = [_memory_key(case, dataset) for case in cases]
    reports: dict[int, CaseReport] = {}
    for index, (case, key) in enumerate(zip(cases, keys, strict=True)):
        facts = _recall(folder, key) if key else None
        if facts is not None:
            reports[index] = CaseReport(case.name, facts)
            on_case(case.name)
    fresh = [index for index in range(len(cases)) if index not in reports]
    # Workers need what the dataset declares, not its list of cases.
    bare = replace(dataset, training=(), test=(), problems=())
    found = map_items(
        partial(_inspect_and_remember, dataset=bare, folder=folder),
        [(cases[index], keys[index]) for index in fresh],
        workers=workers,
        bytes_each=max((reading_bytes(cases[index]) for index in fresh), default=0),
        on_done=lambda number: on_case(cases[fresh[number]].name),
    )
    reports.update(zip(fresh, found, strict=True))
    return [reports[index] for index in range(len(cases))]


def reading_bytes(case: Case) -> int:
    """Memory that reading and measuring a case takes, roughly, by the size of its files.

    Measured: 15 bytes per voxel; compressed files hold about one voxel per byte, plain ones half.
    """
    total = 0
    for path in (*case.images, *case.label_files):
        with suppress(OSError):  # a file that is not there is found when the case is read
            total += sum(file.stat().st_size for file in source_files(path))
    return 16 * total


def with_found_labels(dataset: Dataset, reports: Sequence[CaseReport]) -> Dataset:
    """Return the dataset with the ids of its label files as labels, where it declares none.

    Raises:
        DatasetError: no label file holds anything but background.
    """
    if dataset.labels:
        return dataset
    counts = [report.facts.label_counts or {} for report in reports if report.facts is not None]
    ids = sorted({label_id for count in counts for label_id in count} - {0})
    if not ids:
        raise DatasetError(
            "a dataset must hold at least one labelled structure",
            received="background only",
            remedy="add label files, or declare the labels in sparseg.yaml",
            where=dataset.root,
            code="labels-none",
        )
    return replace(dataset, labels={0: "background", **{i: f"label {i}" for i in ids}})


def without_bad(dataset: Dataset, reports: Sequence[CaseReport]) -> tuple[Dataset, list[CaseReport]]:
    """Return the dataset and reports without the training cases that cannot be used; their names are logged.

    Args:
        dataset: Read with `strict=False`, without test cases.
        reports: One per training case.

    Raises:
        DatasetError: no case is left.
    """
    pairs = list(zip(dataset.training, reports, strict=True))
    good = [(case, report) for case, report in pairs if report.facts is not None]
    faults = [*dataset.problems, *(f for r in reports if r.facts is None for f in r.findings)]
    for fault in faults:
        logger.warning("left out %s: %s", fault.case or fault.file, fault.message)
    if not good:
        raise DatasetError(
            "a dataset must hold a case that can be used",
            received=f"{len(faults)} faults, the first: {faults[0].message}" if faults else "no case",
            remedy="run sparseg check on the dataset",
            where=dataset.root,
            code="dataset-empty",
        )
    training = tuple(case for case, _ in good)
    return replace(dataset, training=training, problems=()), [report for _, report in good]


def require_usable(dataset: Dataset, reports: Sequence[CaseReport]) -> list[CaseFacts]:
    """Return the facts of all cases, in order.

    Raises:
        DatasetError: a case that cannot be used; names the first and counts the others.
    """
    bad = [finding for report in reports for finding in report.findings if finding.severity == "error"]
    if bad:
        first = bad[0]
        others = f" (and {len(bad) - 1} more faults)" if len(bad) > 1 else ""
        raise DatasetError(
            "every case must be usable",
            received=f"case {first.case}: {first.message}{others}",
            remedy=f"{first.remedy}; sparseg check shows all faults, --fix repairs copies",
            where=first.file or dataset.root,
            code=first.code,
        )
    return [report.facts for report in reports if report.facts is not None]


def _inspect_and_remember(item: tuple[Case, str], *, dataset: Dataset, folder: Path) -> CaseReport:
    case, key = item
    report = inspect_case(case, dataset)
    # A case with findings is read again next time: its findings name files, which must not be kept.
    if key and report.facts is not None and not report.findings:
        # Memory only saves time: a read-only home or a full disk must not stop anyone from checking.
        with suppress(OSError, VolumeError):
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(folder / f"{key}.json", json.dumps(report.facts.to_json()).encode())
    return report


def _recall(folder: Path, key: str) -> CaseFacts | None:
    try:
        return CaseFacts.from_json(json.loads((folder / f"{key}.json").read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _memory_key(case: Case, dataset: Dataset) -> str:
    """Hash of what the facts depend on, by the stamps of the files; empty if a file is not there."""
    stamps = []
    try:
        for path in (*case.images, *case.label_files):
            for member in source_files(path):
                status = member.stat()
                stamps.append((str(member.absolute()), status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError:
        return ""
    masks = [name for name, _ in case.masks]
    text = repr((_VERSION, stamps, case.series_uid, masks, dataset.labels, dataset.channels))
    return hashlib.sha256(text.encode()).hexdigest()
