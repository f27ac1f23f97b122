"""One case on its way from file to file: what each of the three steps hands to the next."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from sparseg.predict.cleanup import CleanupReport
from sparseg.predict.dial import SpeedChoice
from sparseg.predict.label_files import LabelWriter
from sparseg.predict.preview import Preview
from sparseg.predict.ratios import Ratios
from sparseg.predict.remarks import CaseWarning
from sparseg.predict.statistics import LabelStatistics
from sparseg.preprocessing.pipeline import Prepared
from sparseg.windows.storage import Storage


@dataclass
class LoadedCase:
    """An image, read and prepared. The original voxels are gone; only their grid is still needed.

    Attributes:
        prepared: Image on the model grid, and the way back.
        affine: 4x4 of the original grid, voxel -> RAS mm.
        write: Writes labels of this image's kind.
        seconds: Time per step so far.
        previews: Small volumes for the report, by name; empty unless asked for.
        warnings: What is odd about the image.
    """

    prepared: Prepared
    affine: np.ndarray
    write: LabelWriter
    seconds: dict[str, float]
    previews: dict[str, Preview] = field(default_factory=dict)
    warnings: tuple[CaseWarning, ...] = ()


@dataclass(frozen=True)
class TokensKept:
    """What one model kept of a window.

    Attributes:
        keep_ratios: Per pruning stage; None stands for the counts the model was built with.
        token_counts: Patch tokens at the start and after each pruning stage.
    """

    keep_ratios: Ratios
    token_counts: tuple[int, ...]


@dataclass(frozen=True)
class WindowResult:
    """What the network said about all windows of a case.

    Attributes:
        logits: float32 `[K, H, W, D]` on the model grid.
        num_windows: Windows run.
        num_skipped: Windows not run because they hold only background.
        part_seconds: Time in `encode`, `assemble`, `decode`; the rest of the windows' time is stitching.
        depth: uint8 `[h, w, d]`, for each patch of the model grid how far its token came: 0 not run, s pruned
            at stage s, one more than the number of stages kept to the end. None if nobody asked.
        tokens: What each model kept.
        choice: What a deadline led to; None without one.
        storage: What made the logits, where they may lie in a file; whoever reads them says so to it.
        warnings: What a lack of memory changed.
    """

    logits: Tensor
    num_windows: int
    num_skipped: int
    part_seconds: dict[str, float] = field(default_factory=dict)
    depth: np.ndarray | None = None
    tokens: tuple[TokensKept, ...] = ()
    choice: SpeedChoice | None = None
    storage: Storage = field(default_factory=Storage)
    warnings: tuple[CaseWarning, ...] = ()


@dataclass
class CaseResult:
    """What happened to one case.

    Attributes:
        seconds: Time per step, in order: `read`, `prepare`, `windows` and its parts `encode`, `assemble`,
            `decode` and `stitch`, then `finish`, `cleanup` if asked for, `statistics`, `write`.
        num_windows: Windows run.
        num_windows_skipped: Windows not run because they hold only background.
        volumes_ml: Volume of each label.
        statistics: All numbers of each label, background excepted, by name.
        cleanup: What clean-up changed; None if none was asked for.
        previews: Small volumes for the report, by name; empty unless asked for.
        maps: Files of probabilities and uncertainty by kind, relative to the folder of the labels.
        tokens: What each model kept.
        choice: What a deadline led to; None without one.
        warnings: What is odd about the image, and what a lack of memory changed.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    num_windows: int = 0
    num_windows_skipped: int = 0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, LabelStatistics] = field(default_factory=dict)
    cleanup: CleanupReport | None = None
    previews: dict[str, Preview] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)
    tokens: tuple[TokensKept, ...] = ()
    choice: SpeedChoice | None = None
    warnings: tuple[CaseWarning, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Time of the whole case: the parts of the windows count once."""
        return sum(value for name, value in self.seconds.items() if name not in WINDOW_PARTS)

    def speed_row(self) -> dict[str, Any]:
        """What a report says about the speed dial: tokens per model, and what a deadline led to."""
        row: dict[str, Any] = {"models": [asdict(kept) for kept in self.tokens]}
        if self.choice is not None:
            met = self.total_seconds <= self.choice.deadline
            row["deadline"] = {
                "seconds": self.choice.deadline,
                "predicted_seconds": round(self.choice.predicted, 4),
                "real_seconds": round(self.total_seconds, 4),
                "met": met,
                "setting": "best that fits" if self.choice.fits else "fastest, none fits",
                "calibrated_dice": round(self.choice.dice, 4),
            }
        return row


WINDOW_PARTS = ("encode", "assemble", "decode", "stitch")
