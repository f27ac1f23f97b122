"""`report.json` and `statistics.json` of a folder, put together from the rows of its cases."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sparseg import __version__
from sparseg.predict.colours import label_colours
from sparseg.predict.predictor import Predictor
from sparseg.predict.rows import Row, shown_row
from sparseg.volumes.atomic import write_bytes_atomically

REPORT = "report.json"
STATISTICS = "statistics.json"
SCHEMA = 1


def report_header(predictor: Predictor) -> dict[str, Any]:
    """Everything in `report.json` that is the same for all cases."""
    models = [
        {
            "model": member.name,
            "weights_sha256": member.card.weights_sha256,
            "token_counts": member.token_counts(),
            "overlap": member.overlap,
        }
        for member in predictor.members
    ]
    # Several models have no one value; each row of `models` has its own.
    alone = models[0] if len(models) == 1 else {}
    settings, labels = predictor.settings, predictor.card.labels
    return {
        "schema": SCHEMA,
        "versions": {
            "sparseg": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "token_counts": alone.get("token_counts"),
        "weights_sha256": alone.get("weights_sha256"),
        "overlap": alone.get("overlap"),
        "models": models,
        "expected": predictor.expected,
        "mirror": settings.mirror,
        "keep_empty": settings.keep_empty,
        "body_only": settings.body_only,
        "reading": asdict(settings.reading),
        "cleanup": asdict(settings.cleanup),
        "files": asdict(settings.files),
        "labels": {str(label): name for label, name in labels.items()},
        "colours": {str(label): colour for label, colour in label_colours(labels).items()},
    }


def write_report(out: Path, header: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write both files, each in one step.

    `statistics.json` holds case -> label -> the fields of `LabelStatistics`; cases that failed are not in it,
    and where all failed it is not there.

    Raises:
        VolumeError: the folder cannot be written to.
    """
    statistics = {row["case"]: row["statistics"] for row in rows if row["status"] == "ok"}
    if statistics:
        write_bytes_atomically(out / STATISTICS, _json({"cases": statistics}))
    else:
        (out / STATISTICS).unlink(missing_ok=True)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    content = {**header, "created": created, "cases": [shown_row(row) for row in rows]}
    write_bytes_atomically(out / REPORT, _json(content))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
