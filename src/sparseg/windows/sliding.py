"""Sliding-window prediction of one volume: cut, run, add up, divide."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseg.errors import NumericsError
from sparseg.shapes import Triple
from sparseg.windows.grid import padding_to_roi, window_starts
from sparseg.windows.importance import Importance, importance_map


def sliding_window(
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    roi: Triple,
    *,
    overlap: float = 0.5,
    importance: Importance = "gaussian",
    batch_size: int = 1,
    pad_value: float = 0.0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Predict a volume window by window.

    Args:
        image: `[C, H, W, D]`, any size; smaller than the roi is padded with `pad_value` on both sides and cut
            back.
        network: `[B, C, *roi] -> [B, K, *roi]`.
        roi: Window edges in voxels.
        overlap: Share of the roi by which neighbours overlap, 0 <= overlap < 1.
        importance: Weights of a window's voxels.
        batch_size: Windows per call of `network`.
        pad_value: What lies outside the volume.
        device: Where `network` runs; sums stay on the CPU.
        on_progress: Called with (windows done, windows in all).

    Returns:
        float32 logits `[K, H, W, D]` on the CPU: the exact weighted mean over the windows that cover a voxel.

    Raises:
        NumericsError: a logit is NaN or infinite; no result is ever built on it.
    """
    size = image.shape[1:]
    padding = padding_to_roi(size, roi)
    padded = F.pad(image, [n for pair in reversed(padding) for n in pair], value=pad_value)
    starts = window_starts(padded.shape[1:], roi, overlap)
    weights = importance_map(roi, importance)
    sums: Tensor | None = None
    total = torch.zeros(padded.shape[1:])
    for first in range(0, len(starts), batch_size):
        chunk = starts[first : first + batch_size]
        windows = torch.stack([padded[(slice(None), *_box(start, roi))] for start in chunk])
        logits = network(windows.to(device)).float().cpu()
        _require_finite(logits, chunk)
        if sums is None:
            sums = torch.zeros(logits.shape[1], *padded.shape[1:])
        for start, window_logits in zip(chunk, logits, strict=True):
            box = _box(start, roi)
            sums[(slice(None), *box)] += window_logits * weights
            total[box] += weights
        if on_progress is not None:
            on_progress(first + len(chunk), len(starts))
    assert sums is not None
    inner = tuple(slice(before, before + edge) for (before, _), edge in zip(padding, size, strict=True))
    return sums.div_(total)[(slice(None), *inner)]


def _box(start: Triple, roi: Triple) -> tuple[slice, slice, slice]:
    a, b, c = (slice(first, first + edge) for first, edge in zip(start, roi, strict=True))
    return (a, b, c)


def _require_finite(logits: Tensor, starts: list[Triple]) -> None:
    if not bool(logits.isfinite().all()):
        raise NumericsError(
            "every logit must be finite",
            received=f"NaN or infinity in the window(s) at {starts}",
            remedy="check the weights (`sparseg info MODEL`) and, on a GPU, run in float32",
        )
