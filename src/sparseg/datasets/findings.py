"""What is wrong with a dataset: one record per fault, the same in the table, in JSON and in the pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparseg.errors import SparsegError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One fault of one file, case or dataset.

    Attributes:
        code: Stable identifier such as "grid-position"; the code of the error where reading raises one.
        severity: An error keeps the case from being used; a warning wants a look; a note is for information.
        message: Rule and received value, one line.
        remedy: What the user can do.
        case: Name of the case; empty if it concerns the dataset.
        file: The file concerned, relative to the dataset where it lies inside it.
        position_mm: World position (RAS, mm) that a picture should show, or None.
        repair: Name of the safe repair that `check --fix` makes; empty where there is none.
    """

    code: str
    severity: Severity
    message: str
    remedy: str
    case: str = ""
    file: str = ""
    position_mm: tuple[float, float, float] | None = None
    repair: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `check.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Finding:
        """The reverse of `to_json`."""
        position = values.get("position_mm")
        return cls(**{**values, "position_mm": None if position is None else tuple(position)})


def finding_of(error: SparsegError, *, case: str = "", severity: Severity = "error") -> Finding:
    """The finding that says what an error says."""
    message = error.rule if error.received is None else f"{error.rule}; received {error.received}"
    return Finding(error.code, severity, message.replace("\n", " "), error.remedy, case, error.where)


def worst(findings: tuple[Finding, ...] | list[Finding]) -> Severity | None:
    """The highest severity present, None without findings."""
    return next((level for level in SEVERITIES if any(f.severity == level for f in findings)), None)
