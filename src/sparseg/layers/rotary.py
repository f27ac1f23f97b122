"""Rotary position embedding in 3-D: queries and keys are turned by angles that follow from their place.

After Su et al. (RoFormer, 2021); per axis as in EVA-02 (Fang et al., 2023) and Primus (Wald et al., 2025). A
product of a query with a key then depends on the way between the two places alone. Places are those of the
full token grid, so they stay what they are however many tokens were pruned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseg.shapes import Triple

_PER_HEAD = 6  # three axes, two channels each


def check_head_width(width: int) -> None:
    """Refuse heads whose channels cannot be shared out.

    Raises:
        ValueError: a width that is no multiple of 6.
    """
    if width % _PER_HEAD:
        raise ValueError(
            f"rotary positions need heads whose width is a multiple of {_PER_HEAD} (three axes, channels in "
            f"pairs), got {width}"
        )


def rotary_table(grid: Triple, width: int) -> Tensor:
    """Cosine and sine of every place's angles.

    An axis gets `width // 6` frequencies 10000^(-i / (width // 6)) per step of the token grid; each stands
    twice, for the two channels of a pair. Channels run h, then w, then d.

    Args:
        grid: Token grid (h, w, d), rows in row-major order.
        width: Channels of a head, a multiple of 6.

    Returns:
        float32 `[2, L, width]`.
    """
    check_head_width(width)
    num_freqs = width // _PER_HEAD
    freqs = 10000.0 ** (-torch.arange(num_freqs, dtype=torch.float64) / num_freqs)
    axes = torch.meshgrid(*(torch.arange(edge, dtype=torch.float64) for edge in grid), indexing="ij")
    angles = torch.cat([places.reshape(-1, 1) * freqs for places in axes], dim=1).repeat_interleave(2, dim=1)
    return torch.stack((angles.cos(), angles.sin())).float()


def take_places(table: Tensor, indices: Tensor, *, before: int = 0, after: int = 0) -> Tensor:
    """The rows of the tokens present.

    Args:
        table: `[2, L, width]` of the full grid.
        indices: `[B, n]`, places of the patch tokens.
        before: Tokens in front of them that have no place and are not turned.
        after: Such tokens behind them.

    Returns:
        `[2, B, before + n + after, width]`.
    """
    rows = table[:, indices]
    still = torch.stack(
        (rows.new_ones(rows.shape[1], 1, rows.shape[3]), rows.new_zeros(rows[0, :, :1].shape))
    )
    return torch.cat((still.expand(-1, -1, before, -1), rows, still.expand(-1, -1, after, -1)), dim=2)


def rotate(x: Tensor, places: Tensor) -> Tensor:
    """Turn the channel pairs of queries or keys.

    Args:
        x: `[B, heads, n, width]`.
        places: `[2, B, n, width]`, see `take_places`.

    Returns:
        `[B, heads, n, width]` in the type of `x`.
    """
    cosine, sine = places.unsqueeze(2).to(x.dtype)
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    result: Tensor = x * cosine + turned * sine
    return result
