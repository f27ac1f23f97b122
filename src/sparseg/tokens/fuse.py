"""Fusing pruned tokens into one that goes on in their place (EViT: Liang et al., ICLR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseg.tokens.stages import StageScores, StageTokens


def fuse_tokens(tokens: Tensor, weights: Tensor) -> Tensor:
    """Sum of tokens weighted by the attention they receive, x = sum a_i x_i (section 3.3; not normalised).

    Args:
        tokens: `[B, m, E]`.
        weights: `[B, m]`.

    Returns:
        `[B, 1, E]`.
    """
    return torch.einsum("bm,bme->be", weights.to(tokens.dtype), tokens).unsqueeze(1)


def fuse_pruned(
    pruned: StageTokens, decision: StageScores, fused: Tensor | None, fused_weight: Tensor | None
) -> Tensor | None:
    """Fuse what one stage prunes, together with the token fused before, if there is one.

    Args:
        pruned: Tokens that leave.
        decision: Of the stage; its scores are the weights.
        fused: `[B, 1, E]` of the stage before, or None.
        fused_weight: `[B, 1]`, attention that it received.

    Returns:
        `[B, 1, E]`; `fused` itself where nothing was pruned.
    """
    if pruned.indices.shape[1] == 0:
        return fused
    positions = torch.searchsorted(decision.indices.contiguous(), pruned.indices.contiguous())
    tokens, weights = pruned.tokens, decision.scores.gather(1, positions)
    if fused is not None and fused_weight is not None:
        tokens = torch.cat((tokens, fused), dim=1)
        weights = torch.cat((weights, fused_weight), dim=1)
    return fuse_tokens(tokens, weights)
