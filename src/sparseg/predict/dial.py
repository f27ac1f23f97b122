"""The speed dial: which keep ratio has the best Dice of those that fit into a deadline."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseg.allocator import memory_reused
from sparseg.errors import CheckpointError, ConfigError, ResourceError
from sparseg.predict.calibration import Calibration, CurvePoint
from sparseg.predict.ratios import Ratios
from sparseg.shapes import Triple
from sparseg.windows.fallback import is_out_of_memory

# A prediction that just fits would be missed every other time.
MARGIN = 1.1
_TIMED = 3


@dataclass(frozen=True)
class SpeedChoice:
    """What a deadline led to for one case.

    Attributes:
        deadline: Seconds allowed from file to file.
        predicted: Seconds expected with the setting taken, those already spent included.
        keep_ratios: For each model the keep ratio per pruning stage.
        dice: Dice of the setting on the calibration's cases, mean over the models.
        fits: False where even the fastest setting is expected to miss the deadline; it is taken all the same.
    """

    deadline: float
    predicted: float
    keep_ratios: tuple[Ratios, ...]
    dice: float
    fits: bool


class SpeedDial:
    """Chooses by the models' own curves.

    Args:
        curves: One per model.
        deadline: Seconds per case, from file to file.
        window_seconds: For each model the time of a window here and now, with the setting it was built with:
            the seconds of its curve are scaled by it.
        device: Kind of device it runs on here. Curves of another kind say nothing about how much faster the
            steps around the network are.
    """

    def __init__(
        self, curves: Sequence[Calibration], deadline: float, window_seconds: Sequence[float], *, device: str
    ) -> None:
        self.deadline = deadline
        self._settings = common_settings(curves)
        self._stitch = [curve.stitch_seconds_per_window for curve in curves]
        self._scales = [
            seconds / curve.own.seconds_per_window
            for seconds, curve in zip(window_seconds, curves, strict=True)
        ]
        self._after = max(
            curve.after_seconds_per_mvoxel * (scale if curve.machine.device == device else 1.0)
            for scale, curve in zip(self._scales, curves, strict=True)
        )

    def choose(self, num_windows: Sequence[int], *, num_voxels: int, spent: float) -> SpeedChoice:
        """The setting for one case.

        Args:
            num_windows: Windows to run, for each model.
            num_voxels: Voxels of the original grid.
            spent: Seconds the case has taken so far.
        """
        rest = spent + self._after * num_voxels / 1e6
        choices = []
        for points in self._settings:
            seconds = rest + sum(
                count * scale * (point.seconds_per_window + stitch)
                for count, scale, stitch, point in zip(
                    num_windows, self._scales, self._stitch, points, strict=True
                )
            )
            choices.append(
                SpeedChoice(
                    self.deadline,
                    seconds,
                    tuple(point.keep_ratios for point in points),
                    sum(point.dice for point in points) / len(points),
                    seconds * MARGIN <= self.deadline,
                )
            )
        fitting = [choice for choice in choices if choice.fits]
        if not fitting:
            return min(choices, key=lambda choice: choice.predicted)
        return max(fitting, key=lambda choice: (choice.dice, -choice.predicted))


def require_curve(
    curve: Calibration | None, deadline: float | None, keep_ratios: Ratios, *, where: object
) -> None:
    """Refuse a deadline that nothing could be chosen by.

    Raises:
        ConfigError: a deadline that is not above 0, or keep ratios beside it.
        CheckpointError: no curve.
    """
    if deadline is None:
        return
    if keep_ratios is not None:
        raise ConfigError(
            "a deadline chooses the keep ratio; only one of the two can be given",
            received=f"deadline {deadline:g} s and keep ratio {', '.join(map(str, keep_ratios))}",
            remedy="leave one of them out",
            where=where,
            code="deadline-and-ratio",
        )
    if not 0 < deadline < math.inf:
        raise ConfigError(
            "a deadline must be above 0 s",
            received=deadline,
            remedy="e.g. 20 seconds",
            where=where,
            code="deadline-range",
        )
    if curve is None:
        raise CheckpointError(
            "a deadline needs the model's own quality/time curve",
            remedy="run `sparseg calibrate RUN DATASET`, or give a keep ratio instead",
            where=where,
            code="no-calibration",
        )


def common_settings(curves: Sequence[Calibration]) -> list[tuple[CurvePoint, ...]]:
    """Settings that all models have measured: their own ones, then each ratio common to all.

    Models of an ensemble may have different stages, so that only one ratio for all stages means the same.
    """
    settings = [tuple(curve.own for curve in curves)]
    tables = [{point.ratio: point for point in curve.points if point.ratio is not None} for curve in curves]
    for ratio in tables[0]:
        if all(ratio in table for table in tables):
            points = tuple(table[ratio] for table in tables)
            if points not in settings:
                settings.append(points)
    return settings


def time_window(
    run: Callable[[Tensor], Tensor], channels: int, roi: Triple, *, batch_size: int, device: str
) -> float:
    """Seconds per window of a network here and now: one run to warm up, then the median of three.

    Where memory runs out, fewer windows are taken at once, as prediction would.

    Args:
        run: `[B, C, *roi]` -> logits.
        channels: C.
        roi: Window edges in voxels.
        batch_size: B.
        device: Where it runs.

    Raises:
        ResourceError: not even one window fits into memory.
    """
    # Like prepared values; zeros can be faster than any image.
    windows = torch.randn(batch_size, channels, *roi, generator=torch.Generator().manual_seed(0)).to(device)
    while True:
        try:
            with memory_reused():  # as in prediction
                seconds = [time_once(run, windows) for _ in range(1 + _TIMED)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(windows) == 1:
                raise ResourceError(
                    "one window must fit into memory before a deadline can be met",
                    received=f"out of memory on {device}",
                    remedy="use --device cpu, or close other programs",
                    code="out-of-memory",
                ) from None
            windows = windows[: len(windows) // 2]
        else:
            return statistics.median(seconds[1:]) / len(windows)


def time_once(run: Callable[[Tensor], Tensor], windows: Tensor) -> float:
    """Seconds of one call; work queued on a GPU is waited for on both sides of the clock."""
    with torch.inference_mode():
        _synchronize(windows.device)
        start = time.perf_counter()
        run(windows)
        _synchronize(windows.device)
        return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
