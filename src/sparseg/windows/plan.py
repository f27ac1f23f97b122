"""Which windows of a volume are run."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from sparseg.shapes import Triple
from sparseg.windows.body import Bounds
from sparseg.windows.empty import EmptyRule, has_content, windows_with_content
from sparseg.windows.grid import axis_starts, padding_to_roi


class WindowPlan(NamedTuple):
    """The padded image `[C, H', W', D']`, its (before, after) per axis, windows to run and number skipped."""

    padded: Tensor
    padding: list[tuple[int, int]]
    starts: list[Triple]
    num_skipped: int


def plan_windows(
    image: Tensor,
    roi: Triple,
    overlap: float,
    *,
    pad_value: float = 0.0,
    empty: EmptyRule | None = None,
    box: Bounds | None = None,
) -> WindowPlan:
    """Pad a volume that is smaller than a window and list the windows to run.

    Args:
        image: `[C, H, W, D]`.
        roi: Window edges in voxels.
        overlap: Share of the roi, 0 <= overlap < 1.
        pad_value: What lies outside the volume.
        empty: Which windows to skip; None runs all.
        box: First voxel and one past the last, along each axis, of the part that windows are laid over; None
            lays them over the whole volume. Needs `empty`, which says what the rest gets.

    Returns:
        The plan; where nothing is padded, `padded` is `image` itself. Windows in row-major order. Those that
        the whole volume would have needed more than the box count as skipped.

    Raises:
        ConfigError: an overlap out of range.
    """
    padding = padding_to_roi(image.shape[1:], roi)
    padded = image
    if any(before or after for before, after in padding):
        padded = F.pad(image, [n for pair in reversed(padding) for n in pair], value=pad_value)
    h, w, d = (axis_starts(n, edge, overlap) for n, edge in zip(padded.shape[1:], roi, strict=True))
    starts = list(product(h, w, d))
    if empty is None:
        return WindowPlan(padded, padding, starts, 0)
    num_all = len(starts)
    if box is not None:
        parts = zip(box, padding, padded.shape[1:], roi, strict=True)
        h, w, d = (
            _starts_within((low + n, high + n), size, edge, overlap)
            for (low, high), (n, _), size, edge in parts
        )
        starts = list(product(h, w, d))
    full = windows_with_content(has_content(padded, empty), (h, w, d), roi, empty.margin_vox)
    run = [start for start, wanted in zip(starts, full.flatten().tolist(), strict=True) if wanted]
    return WindowPlan(padded, padding, run, num_all - len(run))


def _starts_within(part: tuple[int, int], size: int, roi: int, overlap: float) -> list[int]:
    """`axis_starts` for the `part` (first voxel, one past the last) of an axis of `size` voxels."""
    low, high = part
    length = max(high - low, roi)
    first = min(max(0, (low + high - length) // 2), size - length)
    return [first + start for start in axis_starts(length, roi, overlap)]
