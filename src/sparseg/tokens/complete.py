"""Simpler ways to complete the grid, as rivals of token assembly (`assemble.py`).

Each has the interface of `TokenAssembler`: the groups of tokens -> the full grid, and a grid for each skip.
Where pruned tokens are forgotten, the skips forget them too: nothing of them gets past the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sparseg.layers.block import Block
from sparseg.layers.position import sine_cosine_position
from sparseg.layers.recompute import run_part
from sparseg.shapes import Triple, num_tokens
from sparseg.tokens.assemble import assemble_grid
from sparseg.tokens.prune import gather_tokens
from sparseg.tokens.stages import StageTokens

Completion = Literal["assembly", "mask_token", "last_layer", "nearest"]
# Those that use nothing of a pruned token but its place.
FORGETFUL: tuple[Completion, ...] = ("mask_token", "nearest")


def fill_with_token(survivors: StageTokens, token: Tensor, grid: Triple) -> Tensor:
    """Survivors at their places, one and the same token everywhere else.

    Args:
        survivors: `[B, n, E]`; where they have weights, all L tokens, of which those of weight 1 survive.
        token: `[1, 1, E]`.
        grid: Token grid (h, w, d).

    Returns:
        `[B, L, E]`.
    """
    tokens, token = survivors.tokens, token.to(survivors.tokens.dtype)
    if survivors.weight is not None:
        weight = survivors.weight.unsqueeze(-1).to(tokens.dtype)
        return weight * tokens + (1 - weight) * token
    everywhere = token.expand(tokens.shape[0], num_tokens(grid), -1)
    return everywhere.scatter(1, survivors.indices.unsqueeze(-1).expand_as(tokens), tokens)


def nearest_survivors(indices: Tensor, grid: Triple, weight: Tensor | None = None) -> Tensor:
    """Which survivor lies nearest to each place of the grid, in steps of the grid (Euclidean).

    Args:
        indices: `[B, n]` grid positions.
        grid: Token grid (h, w, d).
        weight: `[B, n]` or None; tokens of weight 0 do not count as survivors.

    Returns:
        `[B, L]`, positions 0..n-1 among the survivors; of equally near ones the first.
    """
    h, w, d = grid
    n, far = indices.shape[1], h * h + w * w + d * d
    places = torch.arange(h * w * d, device=indices.device)
    squares = torch.zeros(1, 1, 1, dtype=torch.int64, device=indices.device)
    for step, edge in ((w * d, h), (d, w), (1, d)):
        axis, own = places // step % edge, indices // step % edge
        squares = squares + (axis[None, :, None] - own[:, None, :]).square()
    if weight is not None:
        squares = squares + far * (weight.detach() < 0.5)[:, None, :]
    # The number of the survivor in the low digits makes ties impossible, so every device agrees.
    return (squares * n + torch.arange(n, device=indices.device)).argmin(dim=2)


def copy_nearest(survivors: StageTokens, grid: Triple) -> Tensor:
    """Every place takes a copy of the survivor nearest to it, survivors of themselves -> `[B, L, E]`."""
    return gather_tokens(survivors.tokens, nearest_survivors(survivors.indices, grid, survivors.weight))


class MaskTokenCompletion(nn.Module):
    """Completion as in masked image modelling (MAE: He et al., CVPR 2022): pruned tokens are masked patches.

    Survivors are projected, a learned token stands at every other place, a fixed position is added, then
    transformer blocks as many and as wide as those of the assembler.

    Args:
        embed_dim: Encoder width E.
        assembly_dim: Width E_c of the blocks.
        assembly_depth: Number of blocks.
        num_heads: Their heads.
        mlp_ratio: MLP width over E_c.
        norm_eps: Epsilon of all LayerNorms.
        skip_token: Whether skips need a learned token too.

    Attributes:
        recompute: Whether the blocks' activations are computed again in the backward pass.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        assembly_dim: int,
        assembly_depth: int,
        num_heads: int,
        mlp_ratio: float,
        norm_eps: float,
        skip_token: bool,
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(embed_dim, assembly_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, assembly_dim).normal_(std=0.02))
        self.skip_mask_token = (
            nn.Parameter(torch.empty(1, 1, embed_dim).normal_(std=0.02)) if skip_token else None
        )
        self.blocks = nn.ModuleList(
            Block(assembly_dim, num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
            for _ in range(assembly_depth)
        )
        self.out_norm = nn.LayerNorm(assembly_dim, eps=norm_eps)
        self.out_linear = nn.Linear(assembly_dim, embed_dim)
        self.recompute = False

    def forward(self, stages: Sequence[StageTokens], class_token: Tensor | None, grid: Triple) -> Tensor:
        """See `TokenAssembler.forward`; of the pruned groups nothing is used."""
        survivors = stages[-1]
        projected = StageTokens(self.projection(survivors.tokens), survivors.indices, weight=survivors.weight)
        x = fill_with_token(projected, self.mask_token, grid)
        x = x + sine_cosine_position(grid, x.shape[2]).to(x)
        if class_token is not None:
            x = torch.cat((self.projection(class_token), x), dim=1)
        for block in self.blocks:
            x = run_part(block, x, recompute=self.recompute)
        result: Tensor = self.out_linear(self.out_norm(x[:, x.shape[1] - num_tokens(grid) :]))
        return result

    def place_skip(self, groups: Sequence[StageTokens], grid: Triple) -> Tensor:
        """The grid `[B, L, E]` of a skip: a learned token where tokens were pruned earlier."""
        assert self.skip_mask_token is not None  # built wherever skips are placed
        return fill_with_token(groups[-1], self.skip_mask_token, grid)


class LastLayerFusion(nn.Module):
    """The simplest use of remembered tokens: norm and one linear layer for them, one for the survivors.

    Neither stages nor places are told apart, and no token sees another one after the encoder.

    Args:
        embed_dim: Encoder width E.
        norm_eps: Epsilon of the LayerNorm.
    """

    def __init__(self, embed_dim: int, *, norm_eps: float) -> None:
        super().__init__()
        self.pruned_norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.pruned_linear = nn.Linear(embed_dim, embed_dim)
        self.survivor_linear = nn.Linear(embed_dim, embed_dim)
        self.recompute = False

    def forward(self, stages: Sequence[StageTokens], _: Tensor | None, __: Triple) -> Tensor:
        """See `TokenAssembler.forward`; the class token is dropped."""
        *pruned, survivors = stages
        groups = [
            StageTokens(
                self.pruned_linear(self.pruned_norm(group.tokens)), group.indices, group.gate, group.weight
            )
            for group in pruned
        ]
        tokens = self.survivor_linear(survivors.tokens)
        return assemble_grid([*groups, StageTokens(tokens, survivors.indices, weight=survivors.weight)])

    def place_skip(self, groups: Sequence[StageTokens], grid: Triple) -> Tensor:  # noqa: ARG002
        """The grid `[B, L, E]` of a skip: tokens pruned earlier stand with the value they left with."""
        return assemble_grid(groups)


class NearestCompletion(nn.Module):
    """Every pruned place takes a copy of the nearest survivor, then one linear layer.

    Args:
        embed_dim: Encoder width E.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.recompute = False

    def forward(self, stages: Sequence[StageTokens], _: Tensor | None, grid: Triple) -> Tensor:
        """See `TokenAssembler.forward`; of the pruned groups and the class token nothing is used."""
        survivors = stages[-1]
        projected = StageTokens(self.linear(survivors.tokens), survivors.indices, weight=survivors.weight)
        return copy_nearest(projected, grid)

    def place_skip(self, groups: Sequence[StageTokens], grid: Triple) -> Tensor:
        """The grid `[B, L, E]` of a skip: a copy of the nearest token present where others were pruned."""
        return copy_nearest(groups[-1], grid)
