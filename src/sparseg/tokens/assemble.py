"""Multi-layer Token Assembly (MTA).

Put every group of tokens back on the grid and complete it (paper, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparseg.layers.block import Block
from sparseg.layers.position import sine_cosine_position
from sparseg.layers.recompute import run_part
from sparseg.shapes import Triple, num_tokens
from sparseg.tokens.stages import StageTokens


def assemble_grid(groups: Sequence[StageTokens]) -> Tensor:
    """Put groups that partition the grid back at their positions; the inverse of pruning.

    Args:
        groups: Token groups whose indices together are 0..L-1 in every row; or groups that all span the grid,
            with weights that sum to 1 at each position.

    Returns:
        `[B, L, E]` in row-major grid order. Gates are applied (their value is 1).
    """
    if groups[-1].weight is not None:
        return torch.stack([_gated(group.tokens, group.weight) for group in groups]).sum(dim=0)
    tokens = torch.cat([_gated(group.tokens, group.gate) for group in groups], dim=1)
    indices = torch.cat([group.indices for group in groups], dim=1)
    # The indices are a permutation, so sorting them gives the inverse without writing into a buffer.
    inverse = indices.argsort(dim=1)
    return tokens.gather(1, inverse.unsqueeze(-1).expand_as(tokens))


def _gated(tokens: Tensor, gate: Tensor | None) -> Tensor:
    return tokens if gate is None else tokens * gate.unsqueeze(-1).to(tokens.dtype)


class TokenAssembler(nn.Module):
    """Norm, project and mark each group, put all back on the grid, then complete with transformer blocks.

    Args:
        embed_dim: Encoder width E.
        grid: Token grid the position table is prepared for; others are computed when met.
        num_pruned_groups: Number of pruning stages.
        assembly_dim: Width E_c of the completion blocks.
        assembly_depth: Number of completion blocks (1 in the paper).
        num_heads: Heads of the completion blocks.
        mlp_ratio: MLP width over E_c.
        norm_eps: Epsilon of all LayerNorms.

    Attributes:
        recompute: Whether the blocks' activations are computed again in the backward pass.
    """

    position: Tensor

    def __init__(
        self,
        embed_dim: int,
        grid: Triple,
        *,
        num_pruned_groups: int,
        assembly_dim: int,
        assembly_depth: int,
        num_heads: int,
        mlp_ratio: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        num_groups = num_pruned_groups + 1
        self.pruned_norms = nn.ModuleList(
            nn.LayerNorm(embed_dim, eps=norm_eps) for _ in range(num_pruned_groups)
        )
        self.projections = nn.ModuleList(nn.Linear(embed_dim, assembly_dim) for _ in range(num_groups))
        self.stage_embeddings = nn.ParameterList(
            nn.Parameter(torch.empty(1, 1, assembly_dim).normal_(std=0.02)) for _ in range(num_groups)
        )
        self.blocks = nn.ModuleList(
            Block(assembly_dim, num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
            for _ in range(assembly_depth)
        )
        self.out_norm = nn.LayerNorm(assembly_dim, eps=norm_eps)
        self.out_linear = nn.Linear(assembly_dim, embed_dim)
        self.register_buffer("position", sine_cosine_position(grid, assembly_dim), persistent=False)
        self.grid = grid
        self.recompute = False

    def forward(self, stages: Sequence[StageTokens], class_token: Tensor | None, grid: Triple) -> Tensor:
        """Complete the grid.

        Args:
            stages: Pruned groups in stage order, raw; then the survivors, *already normed* by the encoder.
            class_token: `[B, 1, E]`, normed with the survivors; takes part in the blocks, then is dropped. Or
                None.
            grid: Token grid (h, w, d) with L = h·w·d.

        Returns:
            `[B, L, E]`.
        """
        groups = [self._enter(number, group) for number, group in enumerate(stages)]
        x = assemble_grid(groups) + self._position(grid)
        if class_token is not None:
            x = torch.cat((self.projections[-1](class_token) + self.stage_embeddings[-1], x), dim=1)
        for block in self.blocks:
            x = run_part(block, x, recompute=self.recompute)
        result: Tensor = self.out_linear(self.out_norm(x[:, x.shape[1] - num_tokens(grid) :]))
        return result

    def place_skip(self, groups: Sequence[StageTokens], grid: Triple) -> Tensor:  # noqa: ARG002
        """The grid `[B, L, E]` of a skip: tokens pruned earlier stand with the value they left with."""
        return assemble_grid(groups)

    def _enter(self, number: int, group: StageTokens) -> StageTokens:
        tokens = self.pruned_norms[number](group.tokens) if number < len(self.pruned_norms) else group.tokens
        # The gate multiplies here, behind the LayerNorm; in front of it the norm would cancel its gradient.
        tokens = _gated(self.projections[number](tokens), group.gate) + self.stage_embeddings[number]
        return StageTokens(tokens, group.indices, weight=group.weight)

    def _position(self, grid: Triple) -> Tensor:
        if grid == self.grid:
            return self.position
        return sine_cosine_position(grid, self.position.shape[1]).to(self.position)
