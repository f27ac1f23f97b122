"""Rule for the size of the network: what fits the memory of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sparseg.models.network import NetworkConfig, parse_network
from sparseg.models.peer_config import PeerConfig
from sparseg.models.presets import preset as find_preset
from sparseg.planning.choice import Choice, numbers
from sparseg.planning.grid import choose_roi
from sparseg.planning.memory import size_text
from sparseg.shapes import Triple

CANDIDATES = ("fast_tiny_p8", "fast_small_p8", "fast_base_p8")
# The paper's kind of network in the sizes of each candidate.
STAGED = dict(zip(CANDIDATES, ("vit_tiny_p8", "vit_small_p8", "vit_base_p8"), strict=True))
# The paper's settings: whoever asks for them means these patches, windows and keep ratios.
AS_PUBLISHED = ("btcv", "brats")
DEFAULT_BATCH, MAX_BATCH = 2, 8
# Shares of the preset's patches per axis that are tried, largest first.
_ROI_SHARES = (1.0, 2 / 3, 1 / 2, 1 / 3)

Cost = Callable[[NetworkConfig, int], int]


@dataclass(frozen=True)
class Network:
    """A network that is to be trained.

    Attributes:
        preset: Its name.
        config: Its settings, those of the plan included.
        batch_size: Crops per step.
        bytes_needed: Estimated memory of a training step.
        usable_bytes: Memory that may be taken.
        why_preset: Why this preset.
        why_roi: Why this roi.
        why_batch: Why this batch size.
    """

    preset: str
    config: NetworkConfig
    batch_size: int
    bytes_needed: int
    usable_bytes: int
    why_preset: str
    why_roi: str
    why_batch: str

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.bytes_needed <= self.usable_bytes


def base_config(name: str) -> NetworkConfig:
    """The settings of a preset."""
    return parse_network(find_preset(name), where=name)


def choose_network(
    shapes: Sequence[Triple],
    patch: Triple,
    settings: dict[str, Any],
    *,
    preset: str | None,
    device: str,
    limit: int,
    cost: Cost,
) -> Network:
    """Choose preset, roi and batch size.

    On a GPU the largest preset that fits with two crops, on the CPU fast_tiny_p8 (a larger one would take
    days). If nothing fits with two crops, one is tried, then smaller windows. On a GPU the batch then grows
    while it fits, up to 8. If nothing fits at all, the smallest is taken and `fits` is False.

    Args:
        shapes: Prepared shape of every case.
        patch: Patch edges in voxels; peers without patches of that size leave them aside.
        settings: Overrides of the preset other than patch and roi.
        preset: A preset that the user wants, or None.
        device: "cpu" or "cuda".
        limit: Bytes that a training step may take.
        cost: Bytes of a training step with a model and a batch size.
    """
    on_gpu = device.startswith("cuda")
    names = (preset,) if preset else (CANDIDATES[::-1] if on_gpu else CANDIDATES[:1])
    shares = (1.0,) if preset in AS_PUBLISHED else _ROI_SHARES
    for share, batch, name in product(shares, (DEFAULT_BATCH, 1), names):
        roi = _choose_window(name, shapes, patch, share)
        values = {**find_preset(name), **settings, "roi_size": roi.value}
        if not isinstance(base_config(name), PeerConfig):
            values["patch_size"] = patch
        config = parse_network(values, where=name)
        needed = cost(config, batch)
        if needed <= limit:
            break
    fits, first = needed <= limit, batch
    while on_gpu and fits and batch < MAX_BATCH and cost(config, batch + 1) <= limit:
        batch += 1
        needed = cost(config, batch)
    shrunk = "" if share == 1 else "; windows are smaller than the preset's to save memory"
    return Network(
        name,
        config,
        batch,
        needed,
        limit,
        _why_preset(preset, on_gpu=on_gpu),
        roi.why + shrunk,
        _why_batch(first, batch, needed, limit, fits=fits),
    )


def _choose_window(name: str, shapes: Sequence[Triple], patch: Triple, share: float) -> Choice[Triple]:
    """The window of a preset of the paper as it is, any other by the volumes."""
    base = base_config(name)
    if isinstance(base, PeerConfig):
        step = base.window_step
        most = max(2, round(share * max(base.roi_size) / step))
        roi = choose_roi(shapes, (step, step, step), most).value
        why = f"multiples of {step} that cover the median prepared volume, {numbers((most * step,))} at most"
        return Choice(roi, why)
    if name in AS_PUBLISHED:
        return Choice(base.roi_size, "as published")
    return choose_roi(shapes, patch, max(1, round(share * max(base.grid))))


def _why_preset(wanted: str | None, *, on_gpu: bool) -> str:
    if wanted:
        return "as asked for"
    if on_gpu:
        return f"the largest of {', '.join(CANDIDATES)} that fits the GPU's memory"
    return "the smallest network, for training without a GPU; larger ones are fast_small_p8 and fast_base_p8"


def _why_batch(first: int, batch: int, needed: int, limit: int, *, fits: bool) -> str:
    if not fits:
        return f"even one crop takes about {size_text(needed)} of memory, {size_text(limit)} are usable"
    # What is free at the moment stays out of the text: the same data and device give the same plan.
    room = f"about {size_text(needed)} of memory"
    if batch > first:
        return f"as many crops as fit, at most {MAX_BATCH} ({room})"
    if batch < DEFAULT_BATCH:
        return f"two crops do not fit ({room})"
    return f"the default ({room})"
