"""Pre-norm transformer blocks, those of ViT and of EVA-02, and stochastic depth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.layers.attention import Attention

# (x, q, k) behind the attention -> the tokens `[B, m, E]` that go on, and whatever else is to be handed back.
Between = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


_SCALE_AT_START = 0.1


class DropPath(nn.Module):
    """Drops a whole residual branch per sample with probability `rate` while training (stochastic depth)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...], scaled so that the expectation is unchanged."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep


class Mlp(nn.Module):
    """Linear E -> hidden, GELU, Linear hidden -> E."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        result: Tensor = self.fc2(self.act(self.fc1(x)))
        return result


class GatedMlp(nn.Module):
    """SwiGLU with a LayerNorm inside (EVA-02): Linear E -> a, b; silu(a) * b, norm, Linear hidden -> E."""

    def __init__(self, dim: int, hidden_dim: int, *, norm_eps: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=norm_eps)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        result: Tensor = self.fc2(self.norm(F.silu(gate) * value))
        return result


class LayerScale(nn.Module):
    """Multiplies each channel of a residual branch by a learned factor (Touvron et al., CaiT, 2021)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All factors as at the start."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        return x * self.weight


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        dim: Embedding width E.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP over E.
        qkv_bias: Bias of the combined projection.
        norm_eps: Epsilon of both LayerNorms (1e-6 in ViT).
        drop_path: Stochastic depth rate of both branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp: nn.Module = Mlp(dim, round(dim * mlp_ratio))
        self.scale1: nn.Module = nn.Identity()
        self.scale2: nn.Module = nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        *,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
        places: Tensor | None = None,
        between: Between | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """[B, n, E] -> [B, n, E].

        Args:
            x: Tokens.
            bias: `[B, n]` added to the products with each key, or None.
            keep: `[B, n]`, 0 or 1, tokens that others attend to, or None.
            places: `[2, B, n, E/heads]`, angles of rotary positions, or None.
            between: Called between attention and MLP; the result is then a tuple, tokens first. It belongs
                in here because the hooks that share out or compile a block act on its call.
        """
        out, q, k = self.attn.attend(self.norm1(x), bias, keep, places)
        x = x + self.drop_path(self.scale1(out))
        x, *others = (x,) if between is None else between(x, q, k)
        result: Tensor = x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        return result if between is None else (result, *others)


class EvaBlock(Block):
    """Block of EVA-02 as Primus uses it (Fang et al. 2023; Wald et al. 2025).

    It differs from `Block` by SwiGLU, LayerNorms inside attention and MLP, and LayerScale from 0.1; rotary
    positions are given with each call.

    Args:
        dim: Embedding width E.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP over E, 8/3 in EVA-02: as many weights as a plain MLP of ratio 4.
        qkv_bias: Bias of the combined projection.
        norm_eps: Epsilon of all LayerNorms.
        drop_path: Stochastic depth rate of both branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 8 / 3,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, norm_eps=norm_eps, drop_path=drop_path
        )
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, inner_norm_eps=norm_eps)
        self.mlp = GatedMlp(dim, int(dim * mlp_ratio), norm_eps=norm_eps)
        self.scale1, self.scale2 = (LayerScale(dim, _SCALE_AT_START) for _ in range(2))
