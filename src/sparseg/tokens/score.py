"""Token scores: one number per patch token that says how much it matters (paper, section 3.1, "STP")."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def _mean_over_tokens(features: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return features.mean(dim=1, keepdim=True)
    weight = weight.unsqueeze(-1).to(features.dtype)
    # A row of which nothing is left has no mean; 0 stands in for it.
    return (features * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp_min(1)
