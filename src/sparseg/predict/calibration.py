"""A model's own quality/time curve: what `sparseg calibrate` stored, and what can be read off it.

`calibration.json` lies beside `model.json`. It names no case and no path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from sparseg.checkpoints.card import ModelCard
from sparseg.config import Config, parse_config
from sparseg.errors import CheckpointError, ConfigError
from sparseg.volumes.atomic import write_bytes_atomically

FILE = "calibration.json"
PICTURE = "calibration.png"
_NOISE_FACTOR = 2.0  # differences below this many standard errors are noise
_TIME_NOISE = 1.05  # what repeated calibrations of one model on a busy machine differ by


class CurvePoint(Config):
    """One setting of the speed dial.

    Attributes:
        keep_ratios: Keep ratio per pruning stage; None stands for absolute counts the model was built with.
        own: Whether the model was built with these.
        token_counts: Patch tokens of one window at the start and after each pruning stage.
        dice: Mean Dice over the structures, each averaged over the cases where it is defined.
        dice_noise: Standard error of the Dice difference to the model's own setting, over pairs of case and
            structure; 0 for the own setting, None where one pair only is defined.
        seconds_per_window: Median time of one window through the network, by comparison with the own setting
            in the same round.
        seconds_p10: 10th percentile of the same.
        seconds_p90: 90th percentile of the same.
    """

    keep_ratios: tuple[float, ...] | None
    own: bool = False
    token_counts: tuple[int, ...]
    dice: float = Field(ge=0, le=1)
    dice_noise: float | None = Field(default=None, ge=0)
    seconds_per_window: float = Field(gt=0)
    seconds_p10: float = Field(gt=0)
    seconds_p90: float = Field(gt=0)

    @property
    def ratio(self) -> float | None:
        """The one keep ratio of all stages, if there is one."""
        ratios = set(self.keep_ratios or ())
        return ratios.pop() if len(ratios) == 1 else None

    @property
    def name(self) -> str:
        """What users call it: `0.25`, `0.5, 0.3, 0.1` or `own counts`."""
        if self.keep_ratios is None:
            return "own counts"
        return f"{self.ratio:g}" if self.ratio else ", ".join(f"{ratio:g}" for ratio in self.keep_ratios)


class Machine(Config):
    """What the seconds were measured on.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        name: Name of the processor, or of the GPU.
        threads: CPU threads of the network.
        torch: Version of torch.
    """

    device: str
    name: str = ""
    threads: int = Field(default=1, ge=1)
    torch: str = ""


class Calibration(Config):
    """A model's curve.

    Attributes:
        format_version: Version of this file's layout.
        weights_sha256: The weights it was measured with; a curve of other weights is refused.
        date: Day of the measurement, ISO.
        dataset: Title of the dataset.
        cases: Which cases: the run's own validation cases, the dataset's test cases, or all with labels.
        num_cases: How many.
        overlap: Overlap of the windows.
        machine: What the seconds were measured on.
        stitch_seconds_per_window: Cutting a window out and adding it up.
        before_seconds_per_mvoxel: Reading and preparing, per million voxels of the original grid.
        after_seconds_per_mvoxel: Finishing, numbers and writing, per million voxels of the original grid.
        points: The curve, fewest tokens first.
    """

    format_version: Literal[1] = 1
    weights_sha256: str
    date: str
    dataset: str = ""
    cases: Literal["validation", "test", "labelled"]
    num_cases: int = Field(ge=1)
    overlap: float = Field(ge=0, lt=1)
    machine: Machine
    stitch_seconds_per_window: float = Field(ge=0)
    before_seconds_per_mvoxel: float = Field(ge=0)
    after_seconds_per_mvoxel: float = Field(ge=0)
    points: tuple[CurvePoint, ...] = Field(min_length=1)

    @property
    def own(self) -> CurvePoint:
        """The point of the setting that the model was built with, else the one with the most tokens."""
        return next((point for point in self.points if point.own), self.points[-1])


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write `calibration.json` into a model folder, in one step.

    Raises:
        VolumeError: the folder cannot be written to.
    """
    content = json.dumps(calibration.model_dump(mode="json"), indent=2) + "\n"
    write_bytes_atomically(folder / FILE, content.encode())
    return folder / FILE


def read_calibration(folder: Path, card: ModelCard) -> Calibration:
    """Read the curve of a model folder.

    Args:
        folder: Where `model.json` lies.
        card: That card.

    Raises:
        CheckpointError: no curve (code `no-calibration`), a damaged one (`calibration-damaged`), or one that
            was measured with other weights (`calibration-stale`).
    """
    path = folder / FILE
    again = f"run `sparseg calibrate {folder} DATASET` with a dataset that has labels"
    if not path.is_file():
        raise CheckpointError(
            "a deadline needs the model's own quality/time curve, which nobody has measured yet",
            received=f"no {FILE}",
            remedy=f"{again}, or choose the sparsity yourself with --keep-ratio",
            where=folder,
            code="no-calibration",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = parse_config(Calibration, values if isinstance(values, dict) else {}, where=path)
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise CheckpointError(
            "a calibration must be complete and valid",
            received=" ".join(str(error).split()),
            remedy=again,
            where=path,
            code="calibration-damaged",
        ) from None
    if found.weights_sha256 != card.weights_sha256:
        raise CheckpointError(
            "a calibration must have been measured with the weights beside it (SHA-256)",
            received=f"{found.weights_sha256[:12]}, the model has {card.weights_sha256[:12]}",
            remedy=again,
            where=path,
            code="calibration-stale",
        )
    return found


def curve_table(calibration: Calibration) -> list[list[object]]:
    """The curve as rows: a head, then one row per setting, fewest tokens first."""
    own = calibration.own
    rows: list[list[object]] = [["keep ratio", "tokens", "Dice", "to own", "noise", "s/window", "p10-p90"]]
    for point in calibration.points:
        rows.append(
            [
                f"{point.name}{' (own)' if point.own else ''}",
                " > ".join(map(str, point.token_counts)),
                point.dice,
                "-" if point.own else f"{point.dice - own.dice:+.3f}",
                None if point.own else point.dice_noise,
                f"{point.seconds_per_window:.4f}",
                f"{point.seconds_p10:.4f}-{point.seconds_p90:.4f}",
            ]
        )
    return rows


def findings(calibration: Calibration) -> list[str]:
    """What to know before believing the curve: sentences, none where it is as one would expect."""
    points, own = calibration.points, calibration.own
    return [
        *_dice_steps(points),
        *_time_steps(points),
        *_within_noise([point for point in points if not point.own], own),
        *_cases(calibration),
    ]


def _dice_steps(points: Sequence[CurvePoint]) -> list[str]:
    falls = [
        f"{a.name} ({a.dice:.3f}) > {b.name} ({b.dice:.3f})" for a, b in pairwise(points) if a.dice > b.dice
    ]
    return [f"not monotone: Dice falls though more tokens are kept: {'; '.join(falls)}"] if falls else []


def _time_steps(points: Sequence[CurvePoint]) -> list[str]:
    falls = [
        f"{less.name} ({less.seconds_per_window:.4f} s) > {more.name} ({more.seconds_per_window:.4f} s)"
        for less, more in pairwise(points)
        if less.seconds_per_window > _TIME_NOISE * more.seconds_per_window
    ]
    return [f"not monotone: time falls though more tokens are kept: {'; '.join(falls)}"] if falls else []


def _within_noise(others: Sequence[CurvePoint], own: CurvePoint) -> list[str]:
    unknown = [point.name for point in others if point.dice_noise is None]
    alike = [
        point.name
        for point in others
        if point.dice_noise is not None and abs(point.dice - own.dice) <= _NOISE_FACTOR * point.dice_noise
    ]
    found = []
    if alike:
        found.append(
            f"within noise (2 standard errors over cases and structures): Dice at {', '.join(alike)} cannot "
            f"be told from that at the model's own {own.name}"
        )
    if unknown:
        found.append(f"too few defined Dice values to tell noise at {', '.join(unknown)}")
    return found


def _cases(calibration: Calibration) -> list[str]:
    found = []
    if calibration.num_cases < 5:
        found.append(f"measured with {calibration.num_cases} case(s) only: expect other Dice on other cases")
    if calibration.cases == "labelled":
        found.append("the cases may have been trained on: Dice is optimistic")
    return found
