"""What the report says about one case: its row, on disk as `report/<case>.json`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparseg.errors import SparsegError
from sparseg.predict.case import CaseResult
from sparseg.predict.fingerprints import RunKey
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.machine import peak_bytes_so_far

Row = dict[str, Any]
# Only the row itself holds these: the report has the numbers in a file of their own, the keys once for all.
_OF_THE_FILE = ("statistics", "weights_sha256")
_OF_A_RESULT = (
    "output",
    "output_sha256",
    "input_sha256",
    "settings_sha256",
    "seconds",
    "statistics",
    "previews",
)


def done_row(
    case: PredictionCase,
    result: CaseResult,
    key: RunKey,
    *,
    input_sha256: str,
    output_sha256: str,
    maps_sha256: dict[str, str],
    previews: dict[str, str],
) -> Row:
    """The row of a case whose labels are written.

    Args:
        case: The case.
        result: What became of it.
        key: Of the run.
        input_sha256: Hash of what it was read from.
        output_sha256: Hash of the label file.
        maps_sha256: Hash of each map.
        previews: Name -> path relative to the output folder.
    """
    return {
        "case": case.name,
        "status": "ok",
        "output": case.output.name,
        "output_sha256": output_sha256,
        "input_sha256": input_sha256,
        **_of_key(key),
        "num_windows": result.num_windows,
        "num_windows_skipped": result.num_windows_skipped,
        "seconds": result.seconds,
        "process_peak_bytes": peak_bytes_so_far(),
        "warnings": [asdict(found) for found in result.warnings],
        "volumes_ml": result.volumes_ml,
        **result.speed_row(),
        **({} if result.cleanup is None else {"cleanup": asdict(result.cleanup)}),
        **({"maps": result.maps, "maps_sha256": maps_sha256} if result.maps else {}),
        "previews": previews,
        "statistics": {name: asdict(found) for name, found in result.statistics.items()},
    }


def error_row(case: PredictionCase, error: SparsegError, key: RunKey) -> Row:
    """The row of a case for which nothing was written."""
    return {
        "case": case.name,
        "status": "error",
        **_of_key(key),
        "code": error.code,
        "message": str(error),
    }


def row_bytes(row: Row) -> bytes:
    """A row as it is stored."""
    return (json.dumps(row, indent=1, allow_nan=False) + "\n").encode()


def read_row(path: Path, case: str) -> Row | None:
    """The row of a case; None where there is none that is complete."""
    try:
        row: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(row, dict) or row.get("case") != case:
        return None
    if row.get("status") == "ok":
        return row if all(name in row for name in _OF_A_RESULT) else None
    return row if row.get("status") == "error" and "message" in row else None


def shown_row(row: Row) -> Row:
    """The part of a row that stands in `report.json`."""
    return {name: value for name, value in row.items() if name not in _OF_THE_FILE}


def _of_key(key: RunKey) -> Row:
    return {"settings_sha256": key.settings_sha256, "weights_sha256": list(key.weights_sha256)}
