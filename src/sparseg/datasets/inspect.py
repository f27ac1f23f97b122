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
        image, labels = load_case(case, dataset)
    except SparsegError as error:
        found = diagnose(case, dataset) or (finding_of(error, case=case.name),)
        return CaseReport(case.name, None, found)
    return CaseReport(case.name, measure(image, labels))
