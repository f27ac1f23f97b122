"""A model's stored test case: an input made from a formula, and what the network said about it.

`verify.json` lies beside `model.json`. It holds no voxels of any image.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sparseg.checkpoints.card import ModelCard
from sparseg.config import Config
from sparseg.errors import NumericsError
from sparseg.models.network import Network

FILE = "verify.json"
TOLERANCE = 1e-4  # float32 on the CPU, relative to the largest logit
# Convolutions and matrix products of a GPU round to TF32 or reorder their sums.
DEVICE_TOLERANCE = 1e-2
_NUM_SAMPLES = 64
_SEEDS = 8
# A token whose score is this close to the cut could fall to the other side on another machine.
_CLEAR_CUT = 1e-3


class StoredCase(Config):
    """What `sparseg model verify` compares with.

    Attributes:
        format_version: Version of this file's layout.
        weights_sha256: The weights it was made with.
        card_sha256: The card without provenance: network, preprocessing, channels, labels, regions, overlap.
        seed: Number of the input, see `formula_input`.
        shape: [1, C, *roi] of the input.
        token_cut: Smallest distance of a score from the cut of its stage, in standard deviations of the
            scores there; None for dense models.
        labels_sha256: Hash of the decided labels, uint16 `[H, W, D]`, or of one bit per region.
        label_counts: Voxels per class, or per region.
        positions: Flat voxel positions of the samples.
        logits: Logits at these positions, a list per channel.
        largest: Largest absolute logit of all; the tolerance is a share of it.
    """

    format_version: Literal[1] = 1
    weights_sha256: str
    card_sha256: str
    seed: int = Field(ge=0)
    shape: tuple[int, ...]
    token_cut: float | None = None
    labels_sha256: str
    label_counts: tuple[int, ...]
    positions: tuple[int, ...] = Field(min_length=1)
    logits: tuple[tuple[float, ...], ...]
    largest: float = Field(ge=0)


def formula_input(shape: tuple[int, ...], seed: int) -> Tensor:
    """float32 `[1, C, H, W, D]` within -1 and 1: waves of several lengths along the axes, for any machine.

    No random generator, whose numbers a later version might change.
    """
    _, channels, *edges = shape
    axes = np.meshgrid(*(np.arange(edge, dtype=np.float64) for edge in edges), indexing="ij")
    waves = []
    for channel in range(channels):
        total = np.zeros(edges)
        for wave in range(1, 5):
            phase = 1.7 * seed + 0.9 * channel + wave
            lengths = [edge / (wave + 0.3 * number) for number, edge in enumerate(edges)]
            turns = sum(axis / length for axis, length in zip(axes, lengths, strict=True))
            total += np.sin(2 * np.pi * turns + phase) * np.cos(0.11 * wave * axes[0] + 0.7 * seed)
        waves.append(total / 4)
    return torch.from_numpy(np.stack(waves)[None].astype(np.float32))


def make_stored_case(net: Network, card: ModelCard) -> StoredCase:
    """Run the network, float32 in evaluation mode on the CPU, on the formula's input.

    Of several inputs the first is taken for which every stage's cut through the scores is clear, so that
    rounding elsewhere does not exchange tokens; without one that with the clearest.

    Raises:
        NumericsError: a logit is not finite.
    """
    shape = (1, card.model.in_channels, *card.model.roi_size)
    logits, cut = run_case(net, shape, 0)
    best = (cut, 0, logits)
    for seed in range(1, _SEEDS):
        if best[0] >= _CLEAR_CUT:
            break
        logits, cut = run_case(net, shape, seed)
        best = max(best, (cut, seed, logits), key=lambda found: found[0])
    cut, seed, logits = best
    if not bool(logits.isfinite().all()):
        raise NumericsError(
            "a model must give finite logits to get a test case",
            received="NaN or infinity",
            remedy="lower the learning rate, or train in another precision",
        )
    flat = logits.reshape(logits.shape[0], -1)
    positions = np.unique(np.linspace(0, flat.shape[1] - 1, _NUM_SAMPLES).round().astype(int)).tolist()
    labels, counts = decided(logits, regions=bool(card.regions))
    return StoredCase(
        weights_sha256=card.weights_sha256,
        card_sha256=card_hash(card),
        seed=seed,
        shape=shape,
        token_cut=None if cut == float("inf") else round(cut, 6),
        labels_sha256=labels,
        label_counts=counts,
        positions=tuple(positions),
        logits=tuple(tuple(float(f"{value:.7g}") for value in row) for row in flat[:, positions].tolist()),
        largest=float(flat.abs().max()),
    )


def run_case(net: Network, shape: tuple[int, ...], seed: int) -> tuple[Tensor, float]:
    """Logits `[K, H, W, D]` on the CPU, and the clearest cut that all stages reach (infinite if dense)."""
    device = next(net.parameters()).device
    with torch.inference_mode():
        logits, decisions = net.with_decisions(formula_input(shape, seed).to(device))
    cuts = [_cut(stage.scores[0], stage.indices[0], stage.kept[0]) for stage in decisions]
    return logits[0].float().cpu(), min(cuts, default=float("inf"))


def decided(logits: Tensor, *, regions: bool) -> tuple[str, tuple[int, ...]]:
    """Hash of the decided labels, and voxels per class or region, of logits `[K, H, W, D]`."""
    if regions:
        masks = (logits > 0).numpy()
        return hashlib.sha256(np.packbits(masks).tobytes()).hexdigest(), tuple(
            int(mask.sum()) for mask in masks
        )
    labels = logits.argmax(dim=0).numpy().astype(np.uint16)
    counts = np.bincount(labels.ravel(), minlength=logits.shape[0])
    return hashlib.sha256(labels.tobytes()).hexdigest(), tuple(int(count) for count in counts)


def card_hash(card: ModelCard) -> str:
    """Hash of what a card says about running the model; where it came from may be annotated later."""
    # Without defaults, so that a setting added by a later version does not change it.
    values = card.model_dump(mode="json", exclude={"provenance", "weights_sha256"}, exclude_defaults=True)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _cut(scores: Tensor, indices: Tensor, kept: Tensor) -> float:
    """Distance between the lowest score kept and the highest pruned, in standard deviations."""
    is_kept = torch.isin(indices, kept)
    if bool(is_kept.all()):
        return float("inf")
    gap = scores[is_kept].min() - scores[~is_kept].max()
    return float(gap / scores.std().clamp_min(1e-12))
