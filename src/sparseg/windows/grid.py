"""Where the windows of a volume lie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil

from sparseg.errors import ConfigError
from sparseg.shapes import Triple


def axis_starts(size: int, roi: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis.

    Windows step by `int(roi · (1 - overlap))` voxels (at least 1); the last one is moved back so that it ends
    with the volume. The same rule as MONAI's `sliding_window_inference`.

    Args:
        size: Voxels of the (padded) axis, at least `roi`.
        roi: Window edge.
        overlap: Share of the roi, 0 <= overlap < 1.
    """
    if not 0.0 <= overlap < 1.0:
        raise ConfigError(
            "overlap must be at least 0 and below 1", received=overlap, remedy="e.g. 0.5", where="overlap"
        )
    step = max(1, int(roi * (1 - overlap)))
    count = ceil((size - roi) / step) + 1
    return [min(number * step, size - roi) for number in range(count)]


def window_starts(size: Sequence[int], roi: Triple, overlap: float) -> list[Triple]:
    """First voxels (i, j, k) of all windows of a volume of `size` voxels.

    Every edge at least that of the roi.
    """
    axes = [axis_starts(edge, window, overlap) for edge, window in zip(size, roi, strict=True)]
    return [(i, j, k) for i, j, k in product(*axes)]


def padding_to_roi(size: Sequence[int], roi: Triple) -> list[tuple[int, int]]:
    """Voxels to add (before, after) per axis so that a window fits; the odd one goes behind."""
    missing = [max(0, window - edge) for edge, window in zip(size, roi, strict=True)]
    return [(gap // 2, gap - gap // 2) for gap in missing]
