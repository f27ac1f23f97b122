"""Multi-head self-attention: a fused path, and a readable one with the same result.

Shapes: x `[B, n, E]`; q, k, v `[B, heads, n, E/heads]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q kᵀ / sqrt(d)) v, written out. The reference for the fused kernel; memory grows with n²."""
    weights = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    result: Tensor = weights.softmax(dim=-1) @ v
    return result


class Attention(nn.Module):
    """Self-attention with one combined projection; the rows of `qkv` are q, k, v, each heads x head width.

    Args:
        dim: Embedding width E, a multiple of `num_heads`.
        num_heads: Number of heads.
        qkv_bias: Whether the combined projection has a bias.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, E] -> [B, n, E]."""
        q, k, v = self.split_heads(self.qkv(x))
        out = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return result

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, n, 3E] -> q, k, v, each [B, heads, n, E/heads]."""
        batch, n, _ = qkv.shape
        q, k, v = torch.unbind(qkv.reshape(batch, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4))
        return q, k, v
