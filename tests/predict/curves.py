"""Curves made by hand."""

from __future__ import annotations

from typing import Any

from sparseg.predict.calibration import Calibration, CurvePoint, Machine


def point(ratio: float | None, dice: float, seconds: float, **changes: Any) -> CurvePoint:
    """A point of a model with two stages; its tokens are the ratio in percent."""
    ratios = None if ratio is None else (ratio, ratio)
    values: dict[str, Any] = {
        "keep_ratios": ratios,
        "token_counts": (100, round(100 * (ratio or 0.3)), 1),
        "dice": dice,
        "dice_noise": 0.01,
        "seconds_per_window": seconds,
        "seconds_p10": seconds * 0.9,
        "seconds_p90": seconds * 1.1,
    }
    return CurvePoint(**(values | changes))


def curve(*points: CurvePoint, **changes: Any) -> Calibration:
    """A curve measured on the CPU; stitching takes 0.1 s a window, the rest 2 s per million voxels."""
    values: dict[str, Any] = {
        "weights_sha256": "ab" * 32,
        "date": "2026-11-22",
        "dataset": "toy",
        "cases": "test",
        "num_cases": 7,
        "overlap": 0.5,
        "machine": Machine(device="cpu", name="a processor", threads=1, torch="2"),
        "stitch_seconds_per_window": 0.1,
        "before_seconds_per_mvoxel": 3.0,
        "after_seconds_per_mvoxel": 2.0,
        "points": points,
    }
    return Calibration(**(values | changes))


def usual(**changes: Any) -> Calibration:
    """Four settings, more tokens better and slower; the own one is 0.5."""
    return curve(
        point(0.1, 0.60, 0.4),
        point(0.25, 0.70, 0.9),
        point(0.5, 0.80, 1.9, own=True),
        point(1.0, 0.85, 3.9),
        **changes,
    )
