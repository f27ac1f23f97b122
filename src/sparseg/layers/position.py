"""3-D position embeddings over a token grid (h, w, d), rows in row-major grid order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseg.shapes import Triple, num_tokens


def sine_cosine_position(grid: Triple, dim: int) -> Tensor:
    """Fixed 3-D sine-cosine table.

    Each axis gets `dim // 6` frequencies 10000^(-i / (dim // 6)); the columns are sin h, cos h, sin w, cos w,
    sin d, cos d, and zeros where `dim` is not a multiple of 6.

    Returns:
        float32 `[L, dim]`, row-major over (h, w, d).
    """
    num_freqs = dim // 6
    freqs = 10000.0 ** (-torch.arange(num_freqs, dtype=torch.float64) / max(num_freqs, 1))
    axes = torch.meshgrid(*(torch.arange(edge, dtype=torch.float64) for edge in grid), indexing="ij")
    columns = []
    for positions in axes:
        angles = positions.reshape(-1, 1) * freqs
        columns += [angles.sin(), angles.cos()]
    table = torch.cat(columns, dim=1)
    return F.pad(table, (0, dim - table.shape[1])).float()


def resize_position(table: Tensor, grid: Triple, new_grid: Triple) -> Tensor:
    """Resize a position table to another token grid by trilinear interpolation.

    Args:
        table: `[1, L, E]` for `grid`, without a class-token row.
        grid: Grid the table was made for.
        new_grid: Grid wanted.

    Returns:
        `[1, L', E]`; `table` itself where the grids are equal.
    """
    if grid == new_grid:
        return table
    volume = table.reshape(1, *grid, -1).permute(0, 4, 1, 2, 3)
    resized = F.interpolate(volume, size=new_grid, mode="trilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2).reshape(1, num_tokens(new_grid), -1)
