"""Everything that is wrong with a dataset: cases one by one, then against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.findings import SEVERITIES, Finding, Severity, worst
from sparseg.datasets.inspect import CaseReport
from sparseg.datasets.rules import set_findings
from sparseg.datasets.survey import survey
from sparseg.errors import SparsegError
from sparseg.volumes.nifti import read_nifti_header

_FORMAT = 1
_UNIT_NAMES = {1: "metres", 3: "microns"}


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        dataset: What was checked.
        reports: One per case, in the order of `dataset.cases`.
        findings: All of them, errors first, then in the order of the cases; files relative to the dataset.
    """

    dataset: Dataset
    reports: tuple[CaseReport, ...]
    findings: tuple[Finding, ...]

    @property
    def severity(self) -> Severity | None:
        """The highest severity found, None if nothing was."""
        return worst(self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Cases (with those that could not even be listed), those that can be used, findings by severity."""
        listed = {case.name for case in self.dataset.cases}
        unlisted = {problem.case for problem in self.dataset.problems} - listed - {""}
        return {
            "cases": len(self.reports) + len(unlisted),
            "usable": sum(report.facts is not None for report in self.reports),
            **{
                f"{level}s": sum(finding.severity == level for finding in self.findings)
                for level in SEVERITIES
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Content of `check.json`."""
        dataset = self.dataset
        return {
            "format": _FORMAT,
            "dataset": {
                "name": dataset.name,
                "channels": list(dataset.channels),
                "labels": {str(label_id): name for label_id, name in dataset.labels.items()},
                "training": len(dataset.training),
                "test": len(dataset.test),
            },
            "layout": dataset.layout,
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
            "cases": [_summary(report) for report in self.reports],
        }


def check_dataset(
    dataset: Dataset,
    *,
    workers: int | None = None,
    memory: Path | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> CheckResult:
    """Read every case and report all that is wrong; nothing is raised for a bad case.

    Args:
        dataset: Read with `read_dataset(path, strict=False)`.
        workers: Processes; None takes all processors.
        memory: Folder that remembers measurements, see `survey`.
        on_case: Called with a case's name when it is done.

    Raises:
        DatasetError: a worker process died.
    """
    reports = survey(dataset, memory=memory, workers=workers, on_case=on_case)
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    reports = [
        replace(report, findings=tuple(_relative(finding, root) for finding in report.findings))
        for report in reports
    ]
    measured = [
        (case, report.facts)
        for case, report in zip(dataset.cases, reports, strict=True)
        if report.facts is not None
    ]
    found = [*dataset.problems, *_double_names(dataset), *_no_cases(dataset)]
    found += [*set_findings(dataset, measured), *_foreign_units(measured)]
    found = [_relative(finding, root) for finding in found]
    found += [finding for report in reports for finding in report.findings]
    return CheckResult(dataset, tuple(reports), tuple(_sorted(found, dataset)))


def _double_names(dataset: Dataset) -> Iterable[Finding]:
    first: dict[str, Case] = {}
    for case in dataset.cases:
        # Some file systems do not tell capitals apart.
        other = first.setdefault(case.name.casefold(), case)
        if other is not case:
            yield Finding(
                "case-name",
                "error",
                f"every case must have a name of its own; received '{case.name}' for {other.image.name} too",
                "rename one of the files, or remove the double entry",
                case.name,
                str(case.image),
            )


def _no_cases(dataset: Dataset) -> Iterable[Finding]:
    if not dataset.cases and not dataset.problems:
        yield Finding(
            "dataset-empty",
            "error",
            "a dataset must hold cases; received none",
            "name the folder that holds the cases",
        )


def _foreign_units(measured: Sequence[tuple[Case, CaseFacts]]) -> Iterable[Finding]:
    """Headers that count in metres or microns: right here, read a thousand times too small elsewhere."""
    for case, _ in measured:
        for path in (*case.images, *case.label_files):
            unit = _stored_unit(path)
            if unit:
                yield Finding(
                    "unit-not-mm",
                    "note",
                    f"lengths are best stored in mm; received {unit}, converted on reading",
                    "convert the file if other programs are to read it: many ignore the unit",
                    case.name,
                    str(path),
                    repair="convert-units",
                )


def _stored_unit(path: Path) -> str:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return ""
    try:
        return _UNIT_NAMES.get(read_nifti_header(path).unit, "")
    except SparsegError:
        # The file was sound a moment ago; what changed since will show in the next check.
        return ""


def _relative(finding: Finding, root: Path) -> Finding:
    path = Path(finding.file)
    if not finding.file or not path.is_relative_to(root):
        return finding
    return replace(finding, file=path.relative_to(root).as_posix())


def _sorted(findings: Iterable[Finding], dataset: Dataset) -> list[Finding]:
    order = {case.name: number for number, case in enumerate(dataset.cases)}
    return sorted(
        dict.fromkeys(findings),
        key=lambda finding: (SEVERITIES.index(finding.severity), order.get(finding.case, -1)),
    )


def _summary(report: CaseReport) -> dict[str, Any]:
    facts = report.facts
    if facts is None:
        return {"case": report.case, "usable": False}
    counts = facts.label_counts
    return {
        "case": report.case,
        "usable": True,
        "shape": list(facts.shape),
        "spacing_mm": list(facts.spacing),
        "axes": facts.codes,
        "ranges": [[channel.minimum, channel.maximum] for channel in facts.channels],
        "label_voxels": None if counts is None else {str(i): number for i, number in counts.items()},
    }
