"""Token scores: one number per patch token that says how much it matters (paper, section 3.1, "STP")."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.shapes import Triple

ScoreTransform = Literal["standardize", "log_sigmoid", "none"]


def transform_scores(raw: Tensor, transform: ScoreTransform) -> Tensor:
    """Bring raw scores to the scale that selection works on.

    `standardize` gives zero mean and unit spread over the tokens present, so that temperature and noise mean
    the same at every stage and from the first step on; `log_sigmoid` is the published code's transform, which
    caps confident scores at 0. Neither changes the order of the tokens.

    Args:
        raw: `[B, n]`.
        transform: Which one.

    Returns:
        float32 `[B, n]` (float64 stays float64).
    """
    scores = raw if raw.dtype == torch.float64 else raw.float()
    if transform == "log_sigmoid":
        return F.logsigmoid(scores)
    if transform == "standardize":
        centred = scores - scores.mean(dim=1, keepdim=True)
        # The epsilon sits far below the spread of a freshly initialised predictor (about 1e-4).
        return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-12).sqrt()
    return scores


class ScorePredictor(nn.Module):
    """Scores each patch token from its own features and the mean features of all tokens present.

    LayerNorm, Linear E->E, GELU; the second half of the channels is replaced by its mean over the tokens;
    then Linear E->E/2, GELU, E/2->E/4, GELU, E/4->1.

    Args:
        dim: Token width E, a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_mlp = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 1),
        )

    def forward(self, tokens: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, n, E] (no class token) -> raw scores [B, n]; `weight` [B, n]: what each counts in the mean."""
        local, shared = self.in_mlp(tokens).chunk(2, dim=-1)
        shared = _mean_over_tokens(shared, weight).expand_as(local)
        scores: Tensor = self.out_mlp(torch.cat((local, shared), dim=-1))
        return scores.squeeze(-1)


class ImageScorer(nn.Module):
    """Scores each patch from the voxels in and around it, by a few strided convolutions.

    It sees the image, not the tokens, so it may stand before the first block; a linear patch embedding has to
    be unmixed by blocks before a score can ask for the brightest voxel of a patch. Convolutions of 3³ and
    stride 2 with 8, 16, 32, 32 channels down to the token grid, one of stride 1 there, GELU between them, and
    a linear layer to one score. At 96³ and patch 8 these are 0.15 G multiplications.

    Args:
        in_channels: Image channels C.
        patch_size: Patch edges, each a power of two.
    """

    def __init__(self, in_channels: int, patch_size: Triple) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for number, stride in enumerate(_halving_strides(patch_size)):
            wider = min(8 * 2**number, 32)
            layers += [nn.Conv3d(width, wider, kernel_size=3, stride=stride, padding=1), nn.GELU()]
            width = wider
        layers += [nn.Conv3d(width, width, kernel_size=3, padding=1), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(width, 1)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, H, W, D], edges multiples of the patch -> raw scores [B, L] in grid order."""
        features: Tensor = self.layers(image)
        scores: Tensor = self.out(features.flatten(2).transpose(1, 2))
        return scores.squeeze(-1)


def _halving_strides(patch_size: Triple) -> list[Triple]:
    """Strides, each 1 or 2 per axis, whose product is the patch; axes with a small edge are halved last."""
    halvings = [edge.bit_length() - 1 for edge in patch_size]
    strides: list[Triple] = []
    for left in range(max(halvings), 0, -1):
        a, b, c = (2 if count >= left else 1 for count in halvings)
        strides.append((a, b, c))
    return strides


def _mean_over_tokens(features: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return features.mean(dim=1, keepdim=True)
    weight = weight.unsqueeze(-1).to(features.dtype)
    # A row of which nothing is left has no mean; 0 stands in for it.
    return (features * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp_min(1)
