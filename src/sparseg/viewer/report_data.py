"""What a prediction run left in its output folder, as the report page needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sparseg.errors import InputError

REPORT, STATISTICS, PAGE = "report.json", "statistics.json", "report.html"
# The parts of a case's time, in order. `windows` is the sum of four of them and would count twice.
STEPS = (
    "read",
    "prepare",
    "encode",
    "assemble",
    "decode",
    "stitch",
    "finish",
    "cleanup",
    "statistics",
    "write",
)
_WINDOW_STEPS = {"encode", "assemble", "decode", "stitch"}
OTHER = "other"

Colour = tuple[int, int, int]


class _Lenient(BaseModel):
    """Reports of later versions may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ModelRow(_Lenient):
    """One model of a run; of a case, what its tokens were there."""

    model: str = "model"
    weights_sha256: str | None = None
    token_counts: list[int] | None = None
    overlap: float | None = None


class WarningRow(_Lenient):
    """What a case ran into that did not stop it."""

    code: str = ""
    message: str = ""


class Expected(_Lenient):
    """What the run was expected to take before it started."""

    memory_bytes: int
    allowed_bytes: int
    seconds: float
    changes: list[str] = Field(default_factory=list)


class CaseRow(_Lenient):
    """One case of a run; a failed one has only a code and a message."""

    case: str
    status: str = "ok"
    output: str = ""
    num_windows: int = 0
    num_windows_skipped: int = 0
    process_peak_bytes: int = 0
    warnings: list[WarningRow] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    volumes_ml: dict[str, float] = Field(default_factory=dict)
    models: list[ModelRow] = Field(default_factory=list)
    previews: dict[str, str] = Field(default_factory=dict)
    code: str = ""
    message: str = ""

    @field_validator("case")
    @classmethod
    def _names_a_file(cls, name: str) -> str:
        """Files are written under this name; it may lead nowhere else."""
        if name in {"", ".", ".."} or any(sign in name for sign in "/\\\0"):
            raise ValueError("a case name must be able to name a file")
        return name

    @property
    def is_ok(self) -> bool:
        """Whether the case has labels."""
        return self.status == "ok"

    def steps(self) -> dict[str, float]:
        """Seconds per part of the work, in order; they add up to the whole time of the case."""
        known = {name: self.seconds[name] for name in STEPS if name in self.seconds}
        rest = {name: value for name, value in self.seconds.items() if name not in STEPS}
        # Of a run that nobody watched, the windows are one part.
        windows = rest.pop("windows", 0.0) if not _WINDOW_STEPS & known.keys() else 0.0
        rest.pop("windows", None)
        other = windows + sum(rest.values())
        return {**known, **({OTHER: other} if other else {})}


class LabelRow(_Lenient):
    """Numbers of one label of one case; see `predict.statistics.LabelStatistics`."""

    label: int
    voxels: int = 0
    volume_ml: float = 0.0
    centroid_mm: tuple[float, float, float] | None = None
    touches_border: bool = False
    mean_confidence: float | None = None


class RunReport(_Lenient):
    """`report.json`."""

    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    device: str = ""
    threads: int | None = None
    token_counts: list[int] | None = None
    models: list[ModelRow] = Field(default_factory=list)
    expected: Expected | None = None
    mirror: list[str] = Field(default_factory=list)
    keep_empty: bool = False
    reading: dict[str, Any] = Field(default_factory=dict)
    cleanup: dict[str, Any] = Field(default_factory=dict)
    labels: dict[int, str] = Field(default_factory=dict)
    colours: dict[int, Colour] = Field(default_factory=dict)
    cases: list[CaseRow] = Field(default_factory=list)

    @property
    def colours_by_name(self) -> dict[str, Colour]:
        """Colours of the labels that have one."""
        return {name: self.colours[label] for label, name in self.labels.items() if label in self.colours}

    @property
    def num_stages(self) -> int:
        """Pruning stages of the (first) model; 0 where it prunes nothing or nobody says."""
        counts = self.token_counts or (self.models[0].token_counts if self.models else None)
        return max(0, len(counts or ()) - 1)


class RunStatistics(_Lenient):
    """`statistics.json`: case -> label name -> numbers."""

    cases: dict[str, dict[str, LabelRow]] = Field(default_factory=dict)


KindT = TypeVar("KindT", RunReport, RunStatistics)


def read_report(out: Path) -> tuple[RunReport, RunStatistics]:
    """Read both files of an output folder; without statistics.json there are no statistics.

    Raises:
        InputError: no report.json, or one of the files is not what `sparseg predict` writes.
    """
    report = _read(out / REPORT, RunReport)
    has_statistics = (out / STATISTICS).is_file()
    return report, _read(out / STATISTICS, RunStatistics) if has_statistics else RunStatistics()


def inside(out: Path, name: str) -> Path | None:
    """The file of this name (relative, with forward slashes) if it exists within the folder, else None.

    A report is a file like any other: what it names may have been written by someone else.
    """
    # Resolved, so that neither `..` nor a link leads out; a zero byte names nothing.
    if not name or "\0" in name or "\\" in name:
        return None
    path = (out / name).resolve()
    return path if path.is_relative_to(out.resolve()) and path.is_file() else None


def _read(path: Path, kind: type[KindT]) -> KindT:
    if not path.is_file():
        raise InputError(
            "the folder must hold the report of a prediction",
            received=f"no {path.name}",
            remedy="give the folder that was --out of `sparseg predict`",
            where=path.parent,
            code="report-missing",
        )
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(
            "the report must be one that `sparseg predict` wrote",
            received=f"{field}: {first['msg']}" if field else first["msg"],
            remedy="predict again into a new folder",
            where=path,
            code="report-damaged",
        ) from None
