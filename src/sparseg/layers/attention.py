"""Multi-head self-attention: a fused path, and a readable one with the same result.

Shapes: x `[B, n, E]`; q, k, v `[B, heads, n, E/heads]`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.layers.rotary import rotate


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q kᵀ / sqrt(d)) v, written out. The reference for the fused kernel; memory grows with n²."""
    weights = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    result: Tensor = weights.softmax(dim=-1) @ v
    return result


def masked_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Attention to the kept tokens and to oneself, whatever is there in between.

    The weights are exp(P_ij) G_ij / sum_j exp(P_ij) G_ij with G_ii = 1 and G_ij = keep_j elsewhere (Rao et
    al., NeurIPS 2021, section 3.3, "attention masking"). A gradient reaches `keep` even where it is 0, which
    no additive mask allows; so the weights are written out, and memory grows with n².

    Args:
        q: Queries; likewise k and v.
        keep: `[B, n]`, 0 or 1.

    Returns:
        `[B, heads, n, E/heads]`.
    """
    products = _at_least_float32(q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    itself = torch.eye(q.shape[-2], dtype=products.dtype, device=q.device)
    counted = keep.to(products.dtype)[:, None, None, :] * (1 - itself) + itself
    weights = (products - products.amax(dim=-1, keepdim=True).detach()).exp() * counted
    total = weights.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    result: Tensor = (weights / total).to(v.dtype) @ v
    return result


def class_attention(q: Tensor, k: Tensor) -> Tensor:
    """Attention of the first token, the class token, to all others, mean over heads.

    Liang et al., ICLR 2022, section 3.2. One row of the softmax matrix, class token included, is all that is
    made of it.

    Returns:
        float32 `[B, n - 1]` (float64 stays float64); each row sums to 1 less what the class token gives to
        itself.
    """
    products = _at_least_float32(q[:, :, :1] @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    weights: Tensor = products.softmax(dim=-1).mean(dim=1)
    return weights[:, 0, 1:]


def _at_least_float32(products: Tensor) -> Tensor:
    return products if products.dtype == torch.float64 else products.float()


class Attended(NamedTuple):
    """Result of attention `[B, n, E]`, with the queries and keys it came from."""

    out: Tensor
    q: Tensor
    k: Tensor


class Attention(nn.Module):
    """Self-attention with one combined projection; the rows of `qkv` are q, k, v, each heads x head width.

    Args:
        dim: Embedding width E, a multiple of `num_heads`.
        num_heads: Number of heads.
        qkv_bias: Whether the combined projection has a bias.
        inner_norm_eps: Epsilon of a LayerNorm between attention and output projection (EVA-02); None has
            none.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = True, inner_norm_eps: float | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.norm = nn.Identity() if inner_norm_eps is None else nn.LayerNorm(dim, eps=inner_norm_eps)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, E] -> [B, n, E]."""
        return self.attend(x).out

    def attend(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Attended:
        """Attention with what some ways of pruning and merging need.

        Args:
            x: `[B, n, E]`.
            bias: `[B, n]` added to the products of every query with that key, or None.
            keep: `[B, n]`, 0 or 1, see `masked_attention`; or None. Only one of the two may be given.
            places: `[2, B, n, E/heads]`, angles of rotary positions (`sparseg.layers.rotary`), or None.
        """
        q, k, v = self.split_heads(self.qkv(x))
        if places is not None:
            q, k = rotate(q, places), rotate(k, places)
        if keep is not None:
            out = masked_attention(q, k, v, keep)
        else:
            mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return Attended(self.proj(self.norm(out.transpose(1, 2).flatten(2))), q, k)

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, n, 3E] -> q, k, v, each [B, heads, n, E/heads]."""
        batch, n, _ = qkv.shape
        q, k, v = torch.unbind(qkv.reshape(batch, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4))
        return q, k, v
