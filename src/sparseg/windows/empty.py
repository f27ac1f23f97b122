"""Windows that hold nothing but background need no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseg.shapes import Triple


@dataclass(frozen=True)
class EmptyRule:
    """Which windows are empty, and what a voxel gets that only empty windows cover.

    A voxel has content if any of its channels differs from `value` by more than `tolerance`. A window is
    empty if no voxel in it, or within `margin_vox` voxels around it, has content.

    Hence a voxel with content, and every voxel within `margin_vox` of one along all axes, is covered by no
    empty window: its logits are, bit for bit, those without skipping. Only voxels farther away can change.

    Attributes:
        value: Background of the prepared image.
        logits: The K logits of a voxel that no window decided.
        tolerance: Largest distance from `value` that is still background, in units of the prepared image.
        margin_vox: Width of the border around a window that must be empty, too.
    """

    value: float
    logits: tuple[float, ...]
    tolerance: float = 0.0
    margin_vox: int = 2


def has_content(image: Tensor, rule: EmptyRule) -> Tensor:
    """Image `[C, H, W, D]` -> bool `[H, W, D]`: any channel off the background. NaN counts as content."""
    low, high = rule.value - rule.tolerance, rule.value + rule.tolerance
    content = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    for channel in image:
        content |= ~((channel >= low) & (channel <= high))
    return content


def windows_with_content(
    content: Tensor, axes: tuple[Sequence[int], Sequence[int], Sequence[int]], roi: Triple, margin_vox: int
) -> Tensor:
    """Whether each window holds content, its margin included.

    The three axes are reduced one after the other, so that overlapping windows share the work.

    Args:
        content: bool `[H, W, D]`.
        axes: First voxels of the windows along each axis.
        roi: Window edges.
        margin_vox: Width of the border that belongs to a window here.

    Returns:
        bool `[number along H, along W, along D]`.
    """
    for axis, (starts, edge) in enumerate(zip(axes, roi, strict=True)):
        size = content.shape[axis]
        parts = []
        for start in starts:
            first = max(0, start - margin_vox)
            part = content.narrow(axis, first, min(size, start + edge + margin_vox) - first)
            parts.append(part.any(dim=axis))
        content = torch.stack(parts, dim=axis)
    return content
