"""What a planned run will take: windows, memory, disk and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

from sparseg.models.network import NetworkConfig
from sparseg.models.peer_config import PeerConfig
from sparseg.planning.choice import numbers
from sparseg.planning.memory import size_text
from sparseg.planning.network import Network
from sparseg.planning.schedule import steps_per_epoch
from sparseg.shapes import Triple, num_tokens
from sparseg.tokens.select import num_keep
from sparseg.windows.grid import window_starts

OVERLAP = 0.5
# float16 per channel and uint8 for the label, before compression.
_BYTES_PER_VALUE, _BYTES_PER_LABEL = 2, 1


@dataclass(frozen=True)
class Estimates:
    """What a run will take.

    Attributes:
        shape_median: Voxels of the prepared volumes, median per axis.
        windows_median: Windows per case at an overlap of 0.5, median.
        windows_max: The same, maximum.
        token_counts: Patch tokens of a window at the start and after each pruning stage.
        memory_bytes: Peak of a training step.
        usable_bytes: Memory that the plan was made for.
        disk_bytes: All prepared cases on disk, before compression.
        steps_per_epoch: Steps whose crops hold as many voxels as all cases together.
        max_steps: Steps of the run.
        seconds_per_step: Measured on `device`, or None.
        device: Where the run is planned for, and was measured.
    """

    shape_median: Triple
    windows_median: int
    windows_max: int
    token_counts: tuple[int, ...]
    memory_bytes: int
    usable_bytes: int
    disk_bytes: int
    steps_per_epoch: int
    max_steps: int
    seconds_per_step: float | None
    device: str

    @property
    def hours(self) -> float | None:
        """Hours of all steps without validation and reading, None if no step was measured."""
        return None if self.seconds_per_step is None else self.max_steps * self.seconds_per_step / 3600

    def lines(self) -> list[str]:
        """Text, one line per quantity; only the last two depend on measured time."""
        epochs = self.max_steps / self.steps_per_epoch
        result = [
            f"prepared volume: {numbers(self.shape_median)} voxels (median)",
            f"windows per case at overlap {OVERLAP}: {self.windows_median} (median), "
            f"{self.windows_max} (most)",
            *self._token_lines(),
            f"memory of a training step: about {size_text(self.memory_bytes)} ({self.device})",
            f"disk for the prepared cases: at most {size_text(self.disk_bytes)}",
            f"steps per epoch (crops with as many voxels as all cases): {self.steps_per_epoch}; "
            f"{epochs:.1f} epochs in {self.max_steps} steps",
        ]
        if self.seconds_per_step is None:
            return [*result, "time per step: not measured"]
        epoch = duration_text(self.steps_per_epoch * self.seconds_per_step)
        whole = duration_text(self.max_steps * self.seconds_per_step)
        return [
            *result,
            f"time per step: {self.seconds_per_step:.2f} s, measured ({self.device})",
            f"time per epoch: {epoch}; of {self.max_steps} steps: {whole}, without validation",
        ]

    def _token_lines(self) -> list[str]:
        if not self.token_counts:
            return []
        return [f"patch tokens of a window, after each pruning stage: {numbers(self.token_counts, ', ')}"]


def make_estimates(
    network: Network, shapes: Sequence[Triple], max_steps: int, seconds_per_step: float | None, device: str
) -> Estimates:
    """Put together what a run will take.

    Args:
        network: What is trained.
        shapes: Prepared shape of every case.
        max_steps: Steps of the run.
        seconds_per_step: Measured on `device`, or None.
        device: Where it will run.
    """
    roi = network.config.roi_size
    windows = [count_windows(shape, roi) for shape in shapes]
    return Estimates(
        shape_median=median_shape(shapes),
        windows_median=round(median(windows)),
        windows_max=max(windows),
        token_counts=token_counts(network.config),
        memory_bytes=network.bytes_needed,
        usable_bytes=network.usable_bytes,
        disk_bytes=disk_bytes(shapes, network.config.in_channels),
        steps_per_epoch=steps_per_epoch(shapes, roi, network.batch_size),
        max_steps=max_steps,
        seconds_per_step=seconds_per_step,
        device=device,
    )


def duration_text(seconds: float) -> str:
    """Seconds as text in s, min or h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def token_counts(config: NetworkConfig) -> tuple[int, ...]:
    """Patch tokens of one roi at the start and after each pruning stage; none in networks without."""
    if isinstance(config, PeerConfig):
        return tuple(config.token_counts())
    counts = [num_tokens(config.grid)]
    for ratio in config.keep_ratios:
        counts.append(num_keep(counts[-1], ratio, config.count_rule))
    return tuple(counts)


def count_windows(shape: Triple, roi: Triple) -> int:
    """Windows of a volume at an overlap of 0.5; smaller volumes are padded to one."""
    padded = [max(edge, window) for edge, window in zip(shape, roi, strict=True)]
    return len(window_starts(padded, roi, OVERLAP))


def disk_bytes(shapes: Sequence[Triple], num_channels: int) -> int:
    """Size of all prepared cases: float16 per channel and one byte for the label."""
    per_voxel = _BYTES_PER_VALUE * num_channels + _BYTES_PER_LABEL
    return sum(prod(shape) for shape in shapes) * per_voxel


def median_shape(shapes: Sequence[Triple]) -> Triple:
    """Median per axis, rounded."""
    a, b, c = (round(median(shape[axis] for shape in shapes)) for axis in range(3))
    return a, b, c
