"""The box of the patient's body: where windows are worth running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
# Cells in which the body is looked for; coarse enough to be cheap, finer than anything that is kept.
_CELL_MM = 5.0


@dataclass(frozen=True)
class BodyRule:
    """What counts as body: what is above air and thicker than the sheets of a table.

    Everything that holds a ball of `radius_mm` is kept, however many parts it is in, so that no arm or second
    leg is lost, and with it all that lies within `margin_mm`: fingers, ears, rounded corners. What is thin
    and farther away goes unless it lies within the box of the rest: table, cables, clothes.

    Attributes:
        threshold: Body is above it in any channel, in units of the prepared image.
        radius_mm: Radius of the ball.
        margin_mm: What is above the threshold within this distance of a thick part belongs to the body. Air
            does not: the box ends with the body, which saves a row of windows more often than not.
    """

    threshold: float
    radius_mm: float = 10.0
    margin_mm: float = 15.0


def body_box(image: Tensor, rule: BodyRule, spacing: Sequence[float]) -> Bounds:
    """First voxel of the body and one past its last along each axis; the whole image if there is no body.

    Args:
        image: `[C, H, W, D]`, prepared.
        rule: What counts as body.
        spacing: Voxel edges in mm, in array-axis order.
    """
    steps = [max(1, int(_CELL_MM / edge)) for edge in spacing]
    cells = _coarse(image, rule.threshold, steps)
    sizes = [step * edge for step, edge in zip(steps, spacing, strict=True)]
    # A cell that any voxel fills is thicker than what fills it, by up to one cell.
    kernel = [2 * max(1, round(rule.radius_mm / size)) + 1 for size in sizes]
    margin = [2 * round(rule.margin_mm / size) + 1 for size in sizes]
    body = _widen(_widen(~_widen(~cells, kernel), kernel), margin) & cells
    bounds = []
    for axis, (size, step) in enumerate(zip(image.shape[1:], steps, strict=True)):
        hits = body.any(dim=(axis + 1) % 3, keepdim=True).any(dim=(axis + 2) % 3, keepdim=True).flatten()
        places = hits.nonzero().flatten().tolist()
        first, last = (places[0], places[-1]) if places else (0, len(hits))
        bounds.append((first * step, min(size, (last + 1) * step)))
    return (bounds[0], bounds[1], bounds[2])


def _coarse(image: Tensor, threshold: float, steps: Sequence[int]) -> Tensor:
    """Bool `[h, w, d]`: cells that hold a voxel above the threshold; the last ones may be smaller."""
    cells = (image > threshold).any(dim=0)
    for axis, step in enumerate(steps):
        missing = -cells.shape[axis] % step
        pad = [0, 0] * (2 - axis) + [0, missing]
        padded = F.pad(cells, pad)
        before, after = padded.shape[:axis], padded.shape[axis + 1 :]
        cells = padded.reshape(*before, -1, step, *after).any(dim=axis + 1)
    return cells


def _widen(mask: Tensor, kernel: Sequence[int]) -> Tensor:
    """Bool `[h, w, d]` grown by a box of `kernel` cells, one axis after the other.

    Nothing grows in from outside, so that a body cut off by the border is not eroded from there.
    """
    values = mask[None, None].float()
    for axis, edge in enumerate(kernel):
        size = [edge if axis == other else 1 for other in range(3)]
        values = F.max_pool3d(values, size, stride=1, padding=[n // 2 for n in size])
    return values[0, 0] > 0
