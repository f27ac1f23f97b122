"""Tokens of two sizes: a coarse view of the whole window runs along with the patches that are kept.

What is pruned before the first block is seen by no block. Coarse tokens keep it in view: each stands for a
cube of patches, so at two patches per edge they are an eighth of the full grid. Kept patches can attend to
them, and each pruned patch is told what the coarse token of its cube has learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.errors import ShapeError
from sparseg.shapes import Triple, num_tokens
from sparseg.tokens.stages import StageTokens


class Overview(nn.Module):
    """Makes coarse tokens, and gives what they hold to the patches that were pruned.

    A coarse token is the patch embedding, with the same weights, of the image averaged to a coarser grid. It
    gets the mean position of its patches and a mark that tells it from a patch.

    Args:
        dim: Token width E.
        factor: Edge of a coarse token in patches.
        norm_eps: Epsilon of the LayerNorm.
    """

    def __init__(self, dim: int, factor: int, *, norm_eps: float) -> None:
        super().__init__()
        self.factor = factor
        self.mark = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.linear = nn.Linear(dim, dim)

    def embed(self, image: Tensor, patch_embed: Callable[[Tensor], Tensor], position: Tensor) -> Tensor:
        """[B, C, H, W, D] -> coarse tokens `[B, M, E]`, row-major over the coarse grid.

        Args:
            image: Windows.
            patch_embed: Windows -> tokens `[B, L, E]`.
            position: `[1, h, w, d, E]`, of the patches.

        Raises:
            ShapeError: an edge of the token grid is no multiple of `factor`.
        """
        h, w, d = position.shape[1:4]
        coarse_grid((h, w, d), self.factor)
        tokens = patch_embed(F.avg_pool3d(image, self.factor))
        places = F.avg_pool3d(position.movedim(4, 1), self.factor).flatten(2).transpose(1, 2)
        return tokens + places + self.mark

    def tell(self, pruned: StageTokens, coarse: Tensor, grid: Triple) -> StageTokens:
        """Add to each pruned token what the coarse token of its cube says.

        Args:
            pruned: A group of tokens that left.
            coarse: `[B, M, E]`, as the encoder's last block left them.
            grid: Token grid (h, w, d) of the window.
        """
        said: Tensor = self.linear(self.norm(coarse))
        cells = cell_of(pruned.indices, grid, self.factor)
        told = said.gather(1, cells.unsqueeze(-1).expand(-1, -1, said.shape[2]))
        return replace(pruned, tokens=pruned.tokens + told)


def coarse_grid(grid: Triple, factor: int) -> Triple:
    """The grid of coarse tokens.

    Raises:
        ShapeError: an edge of the token grid is no multiple of `factor`.
    """
    if any(edge % factor for edge in grid):
        raise ShapeError(
            f"with an overview of {factor} every edge of the token grid must be a multiple of {factor}",
            received=grid,
            remedy="choose a window that is a multiple of that many patches, or overview 0",
            where="overview",
        )
    return (grid[0] // factor, grid[1] // factor, grid[2] // factor)


def cell_of(indices: Tensor, grid: Triple, factor: int) -> Tensor:
    """Which coarse token holds each patch, both row-major: `[B, n]` -> `[B, n]`."""
    _, w, d = grid
    _, coarse_w, coarse_d = coarse_grid(grid, factor)
    row, column, depth = indices // (w * d), indices // d % w, indices % d
    return (row // factor * coarse_w + column // factor) * coarse_d + depth // factor


def num_coarse(grid: Triple, factor: int) -> int:
    """Number of coarse tokens of a token grid; 0 without any (`factor` 0)."""
    return num_tokens(coarse_grid(grid, factor)) if factor else 0
