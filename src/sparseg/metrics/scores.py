"""All metrics of one case, and their means and spread over cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sparseg.metrics.boxes import label_pair
from sparseg.metrics.overlap import dice_of_masks
from sparseg.metrics.surface import hd95_of_masks, nsd_of_masks

METRICS = ("dice", "hd95_mm", "nsd")
# What a structure absent from both prediction and reference counts in the mean "with empty".
BOTH_EMPTY = {"dice": 1.0, "nsd": 1.0}


def score_structures(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing: Sequence[float],
    structures: Mapping[str, tuple[int, ...]],
    *,
    tolerance_mm: float,
) -> list[dict[str, Any]]:
    """Score two label maps on one grid.

    Args:
        pred: `[H,W,D]` label ids.
        ref: `[H,W,D]` label ids on the same grid.
        spacing: Voxel edges in mm, in array-axis order.
        structures: Name -> the ids that make it up; one id for a class, several for a region.
        tolerance_mm: Distance within which NSD counts a surface as right.

    Returns:
        One row per structure: `name`, `dice`, `hd95_mm`, `nsd` (None where not defined) and voxel counts.

    Raises:
        ShapeError: not two integer arrays of one shape.
    """
    predicted, reference = label_pair(pred, ref)
    rows = []
    for name, ids in structures.items():
        masks = np.isin(predicted, ids), np.isin(reference, ids)
        values = {
            "dice": dice_of_masks(*masks),
            "hd95_mm": hd95_of_masks(*masks, spacing),
            "nsd": nsd_of_masks(*masks, spacing, tolerance_mm=tolerance_mm),
        }
        rows.append(
            {"name": name}
            | {key: None if math.isnan(value) else value for key, value in values.items()}
            | {"num_pred": int(masks[0].sum()), "num_ref": int(masks[1].sum())}
        )
    return rows


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of one structure over its rows of all cases.

    Returns:
        For each metric the mean over the defined values (None without any), `*_count` of these, and
        `*_with_empty`, where a structure absent from prediction and reference counts as 1.
    """
    summary: dict[str, Any] = {}
    for key in METRICS:
        defined = [row[key] for row in rows if row[key] is not None]
        summary[key] = average(defined)
        summary[f"{key}_count"] = len(defined)
        if key in BOTH_EMPTY:
            summary[f"{key}_with_empty"] = average(
                [BOTH_EMPTY[key] if row[key] is None else row[key] for row in rows]
            )
    return summary


def mean_of(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of each metric over the structures that have one; every structure counts the same."""
    keys = [
        key for metric in METRICS for key in (metric, f"{metric}_with_empty") if key != "hd95_mm_with_empty"
    ]
    return {key: average(row[key] for row in summaries if row[key] is not None) for key in keys}


def average(values: Iterable[float]) -> float | None:
    """Mean, or None without values."""
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def deviation(values: Iterable[float]) -> float | None:
    """Standard deviation of a sample (n - 1); None for fewer than two values."""
    listed = list(values)
    return float(np.std(listed, ddof=1)) if len(listed) > 1 else None
