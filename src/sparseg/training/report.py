"""Where the numbers of a run go: its log, whoever watches, and the trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparseg.training import log
from sparseg.training.monitor import Monitor, StepInfo
from sparseg.training.tracking import Tracker, make_trackers, step_scalars, validation_scalars


class Reporter:
    """Reports of the main process.

    Args:
        folder: Run folder.
        monitor: Watches the run.
        trackers: Names of trackers to open.
        resumed_from: Last step that is kept from before; None for a new run.
    """

    def __init__(
        self, folder: Path, monitor: Monitor, trackers: Sequence[str], *, resumed_from: int | None
    ) -> None:
        self.folder, self.monitor = folder, monitor
        self.trackers: list[Tracker] = make_trackers(trackers, folder, resumed_from=resumed_from)

    def step(self, info: StepInfo, selection: Mapping[str, float]) -> None:
        """After every step; `selection` holds statistics of the token selection, or nothing."""
        row = {
            "kind": "train",
            "step": info.step,
            "loss": info.loss,
            "lr": info.lr,
            "seconds": round(info.seconds, 4),
            "data_wait_share": round(info.data_wait, 4),
            "crops_per_second": round(info.crops_per_second, 4),
            "memory_bytes": info.memory_bytes,
            **({"selection": selection} if selection else {}),
        }
        log.append(self.folder, row)
        self._track(info.step, step_scalars(info, selection))
        self.monitor.on_step(info)

    def validation(
        self, step: int, dice: dict[str, float], mean: float, *, best: float, best_step: int
    ) -> None:
        """After every validation."""
        log.append(self.folder, {"kind": "validation", "step": step, "dice": dice, "mean_dice": mean})
        log.draw(self.folder)
        self._track(step, validation_scalars(dice, mean))
        for tracker in self.trackers:
            tracker.log_image(step, "progress", self.folder / "progress.png")
        self.monitor.on_validation(step, dice, mean, best, best_step)

    def close(self) -> None:
        """Write out what trackers hold back."""
        for tracker in self.trackers:
            tracker.close()

    def _track(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log_scalars(step, values)
