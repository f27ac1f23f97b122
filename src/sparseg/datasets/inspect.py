"""One case read once: what it measures and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.diagnose import diagnose
from sparseg.datasets.facts import CaseFacts, measure
from sparseg.datasets.findings import Finding, finding_of
from sparseg.datasets.load import load_case
from sparseg.errors import SparsegError


@dataclass(frozen=True)
class CaseReport:
    """Result of reading one case.

    Attributes:
        case: Its name.
        facts: What it measures; None if it cannot be used.
        findings: What is wrong with it.
    """

    case: str
    facts: CaseFacts | None
    findings: tuple[Finding, ...] = ()


def inspect_case(case: Case, dataset: Dataset) -> CaseReport:
    """Read a case as training would, and measure it; where that fails, say all that is wrong with it."""
    try:
        return _inspect(case, dataset)
    except OSError as error:
        return CaseReport(case.name, None, (_unreadable(error, case),))


def _inspect(case: Case, dataset: Dataset) -> CaseReport:
    try:
        image, labels = load_case(case, dataset)
    except SparsegError as error:
        found = diagnose(case, dataset) or (finding_of(error, case=case.name),)
        return CaseReport(case.name, None, found)
    return CaseReport(case.name, measure(image, labels))


def _unreadable(error: OSError, case: Case) -> Finding:
    """A folder that may not be listed, a disk that fails: what the readers have no error of their own for."""
    return Finding(
        "file-unreadable",
        "error",
        f"every file must be readable; received {error.strerror or type(error).__name__}",
        "check the permissions of the file and its folder, and the disk",
        case.name,
        str(error.filename or case.image),
    )
