"""Sliding-window prediction of one volume: cut, run, add up, divide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparseg.errors import NumericsError, ShapeError
from sparseg.shapes import Triple
from sparseg.windows.empty import EmptyRule
from sparseg.windows.fallback import WindowRunner
from sparseg.windows.importance import Importance, importance_map
from sparseg.windows.plan import WindowPlan, plan_windows
from sparseg.windows.storage import Storage
from sparseg.windows.sums import WeightedSums, box_at


def sliding_window(
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    roi: Triple,
    *,
    overlap: float = 0.5,
    importance: Importance = "gaussian",
    batch_size: int = 1,
    pad_value: float = 0.0,
    empty: EmptyRule | None = None,
    plan: WindowPlan | None = None,
    device: torch.device | str = "cpu",
    sums_device: torch.device | str = "cpu",
    storage: Storage | None = None,
    to_cpu: Callable[[], object] | None = None,
    on_fallback: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_batch: Callable[[Sequence[Triple]], None] | None = None,
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
        empty: Which windows are skipped; None runs all. A voxel is decided by the windows that are run and
            cover it; without any it gets `empty.logits`.
        plan: What `plan_windows` gave for the same image and settings, for a caller who wants to know it;
            None plans here.
        device: Where `network` runs.
        sums_device: Where the sums lie: the CPU, or the device if it has room for K + 1 floats per voxel.
        storage: Makes the sums on the CPU, perhaps in a temporary file that vanishes with the result; None
            makes them in memory.
        to_cpu: Moves `network` to the CPU, the last resort where the device has no room for one window; None
            makes that an error.
        on_fallback: Called with what is changed when memory runs out, once per change; None logs it. See
            `WindowRunner`. The labels stay the same.
        on_progress: Called with (windows done, windows to run).
        on_batch: Called after each call of `network` with the first voxels of its windows, in voxels of the
            image; negative in its padding.

    Returns:
        float32 logits `[K, H, W, D]` on the CPU: the exact weighted mean over the windows run that cover a
        voxel.

    Raises:
        ConfigError: an overlap out of range.
        ShapeError: `empty.logits` of another number than the network's channels.
        NumericsError: a logit is NaN or infinite; no result is ever built on it.
        ResourceError: no room for the temporary file, or for one window.
    """
    if plan is None:
        plan = plan_windows(image, roi, overlap, pad_value=pad_value, empty=empty)
    size, weights = plan.padded.shape[1:], importance_map(roi, importance)
    runner = WindowRunner(
        network,
        lambda channels, place, in_file: WeightedSums(
            channels, size, weights, device=place, storage=storage, in_file=in_file
        ),
        batch_size=batch_size,
        device=device,
        sums_device=sums_device,
        to_cpu=to_cpu,
        on_fallback=on_fallback,
    )
    done = 0
    while done < len(plan.starts):
        chunk = _run_batch(runner, plan, roi, done, empty)
        done += len(chunk)
        if on_batch is not None:
            on_batch([_without_padding(start, plan) for start in chunk])
        if on_progress is not None:
            on_progress(done, len(plan.starts))
    fill = None if empty is None else empty.logits
    return _cut_back(runner.mean(len(fill or ()), fill), plan, image)


def _run_batch(
    runner: WindowRunner, plan: WindowPlan, roi: Triple, first: int, empty: EmptyRule | None
) -> list[Triple]:
    """Run and add the next windows; returns where they start."""

    def cut(count: int) -> Tensor:
        boxes = [box_at(start, roi) for start in plan.starts[first : first + count]]
        return torch.stack([plan.padded[(slice(None), *box)] for box in boxes])

    logits = runner.logits(cut)
    chunk = plan.starts[first : first + len(logits)]
    _require_finite(logits, chunk)
    _require_channels(logits, empty)
    for start, window_logits in zip(chunk, logits, strict=True):
        runner.add(start, window_logits)
    return chunk


def _without_padding(start: Triple, plan: WindowPlan) -> Triple:
    a, b, c = (first - before for first, (before, _) in zip(start, plan.padding, strict=True))
    return (a, b, c)


def _cut_back(logits: Tensor, plan: WindowPlan, image: Tensor) -> Tensor:
    """Remove the padding."""
    edges = zip(plan.padding, image.shape[1:], strict=True)
    return logits[(slice(None), *(slice(before, before + edge) for (before, _), edge in edges))]


def _require_channels(logits: Tensor, empty: EmptyRule | None) -> None:
    if empty is not None and len(empty.logits) != logits.shape[1]:
        raise ShapeError(
            f"an empty voxel needs one logit for each of the network's {logits.shape[1]} channels",
            received=len(empty.logits),
            remedy="give as many",
            where="empty.logits",
        )


def _require_finite(logits: Tensor, starts: list[Triple]) -> None:
    # One value that is not finite makes the sum so; only a finite sum that overflows needs the second look.
    if not bool(logits.sum().isfinite()) and not bool(logits.isfinite().all()):
        raise NumericsError(
            "every logit must be finite",
            received=f"NaN or infinity in the window(s) at {starts}",
            remedy="check the weights (`sparseg info MODEL`) and, on a GPU, run in float32",
        )
