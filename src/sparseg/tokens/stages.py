"""`StageTokens`: a group of tokens together with the grid positions they came from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StageTokens:
    """Tokens that left the encoder at one pruning stage, or the survivors.

    Attributes:
        tokens: `[B, n, E]`, in ascending grid order.
        indices: `[B, n]` int64, ascending positions in the row-major token grid, class token not counted.
        gate: `[B, n]` or None. Straight-through factor of value 1 that carries the gradient to the scores;
            the assembler multiplies with it *after* the group's LayerNorm, which would cancel a factor put
            before it.
    """

    tokens: Tensor
    indices: Tensor
    gate: Tensor | None = None
