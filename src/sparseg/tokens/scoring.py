"""Scores that nobody learns: chance, regular spacing, the image itself, the attention of the class token.

They stand beside the score predictor (`score.py`) as baselines. Each gives `[B, n]` for the tokens present;
the highest are kept.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sparseg.shapes import Triple
from sparseg.tokens.embed import cut_patches
from sparseg.tokens.stages import StageContext, StageTokens

Scoring = Literal[
    "predictor", "image", "random", "stride", "intensity", "entropy", "class_attention", "gates"
]
# Those that have weights to train: of the score predictor, or of the convolutions over the image.
LEARNED: tuple[Scoring, ...] = ("predictor", "image", "gates")

NUM_BINS = 32
_HASH_ROUNDS, _HASH_FACTOR, _HASH_MASK = 3, 0x2C1B3C6D, 0xFFFFFFFF


def fixed_scores(scoring: Scoring, present: StageTokens, k: int, context: StageContext) -> Tensor:
    """Scores of the tokens present by a rule without weights, `[B, n]`; the same for the same input."""
    if scoring == "random":
        return position_noise(present.indices, context.stage)
    if scoring == "stride":
        return stride_scores(present.indices, k)
    if scoring == "class_attention":
        # Only a stage before the first block has none, and settings with such a stage are refused.
        assert context.class_attention is not None
        return context.class_attention
    measure = patch_entropy if scoring == "entropy" else patch_deviation
    return measure(context.image, context.patch_size).gather(1, present.indices)


def position_noise(indices: Tensor, stage: int) -> Tensor:
    """A number in [0, 1) for each grid position and stage that looks random and never changes.

    Evaluation with random scores is thereby the same for every window, batch, device and machine.

    Args:
        indices: `[B, n]` grid positions.
        stage: Number of the stage.

    Returns:
        float32 `[B, n]`.
    """
    value = (indices + 1 + (stage << 20)) & _HASH_MASK
    for _ in range(_HASH_ROUNDS):
        # A multiplication spreads low bits upwards, the shift brings high bits down again.
        value = ((value ^ (value >> 16)) * _HASH_FACTOR) & _HASH_MASK
    return ((value ^ (value >> 16)) >> 8).float() / 2**24


def stride_scores(indices: Tensor, k: int) -> Tensor:
    """1 for k of the n tokens present, evenly spaced in grid order, 0 for the others.

    Token floor(i · n / k), i = 0..k-1, so the count is exact for any n and k.
    """
    batch, n = indices.shape
    chosen = torch.arange(k, device=indices.device) * n // max(k, 1)
    return torch.zeros(batch, n, device=indices.device).scatter(1, chosen.expand(batch, k), 1.0)


def patch_deviation(image: Tensor, patch_size: Triple) -> Tensor:
    """Standard deviation of the voxels of each patch, mean over channels.

    Args:
        image: `[B, C, H, W, D]`.
        patch_size: Patch edges in voxels.

    Returns:
        `[B, L]`, in units of the image.
    """
    return cut_patches(image, patch_size).std(dim=3, correction=0).mean(dim=1)


def patch_entropy(image: Tensor, patch_size: Triple) -> Tensor:
    """Shannon entropy of the histogram of each patch, mean over channels.

    The bins are 32 equal parts between the lowest and the highest value of the channel in the window.

    Args:
        image: `[B, C, H, W, D]`.
        patch_size: Patch edges in voxels.

    Returns:
        float32 `[B, L]`, in bits.
    """
    patches = cut_patches(image, patch_size).float()
    low, high = patches.amin(dim=(2, 3), keepdim=True), patches.amax(dim=(2, 3), keepdim=True)
    width = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    bins = ((patches - low) / width * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    counts = patches.new_zeros(*patches.shape[:3], NUM_BINS).scatter_add(3, bins, torch.ones_like(patches))
    share = counts / patches.shape[3]
    nats: Tensor = torch.special.entr(share).sum(dim=3).mean(dim=1)
    return nats / math.log(2)
