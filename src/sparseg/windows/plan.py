"""Which windows of a volume are run."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from sparseg.shapes import Triple
from sparseg.windows.empty import EmptyRule, has_content, windows_with_content
from sparseg.windows.grid import axis_starts, padding_to_roi


class WindowPlan(NamedTuple):
    """The padded image `[C, H', W', D']`, its (before, after) per axis, windows to run and number skipped."""

    padded: Tensor
    padding: list[tuple[int, int]]
    starts: list[Triple]
    num_skipped: int


def plan_windows(
    image: Tensor, roi: Triple, overlap: float, *, pad_value: float = 0.0, empty: EmptyRule | None = None
) -> WindowPlan:
    """Pad a volume that is smaller than a window and list the windows to run.

    Args:
        image: `[C, H, W, D]`.
        roi: Window edges in voxels.
        overlap: Share of the roi, 0 <= overlap < 1.
        pad_value: What lies outside the volume.
        empty: Which windows to skip; None runs all.

    Returns:
        The plan; where nothing is padded, `padded` is `image` itself. Windows in row-major order.

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
    full = windows_with_content(has_content(padded, empty), (h, w, d), roi, empty.margin_vox)
    run = [start for start, wanted in zip(starts, full.flatten().tolist(), strict=True) if wanted]
    return WindowPlan(padded, padding, run, len(starts) - len(run))
