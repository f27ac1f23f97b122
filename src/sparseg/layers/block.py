"""Pre-norm transformer block and stochastic depth."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sparseg.layers.attention import Attention

# (x, q, k) behind the attention -> the tokens `[B, m, E]` that go on, and whatever else is to be handed back.
Between = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


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
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        *,
        bias: Tensor | None = None,
        keep: Tensor | None = None,
        between: Between | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """[B, n, E] -> [B, n, E].

        Args:
            x: Tokens.
            bias: `[B, n]` added to the products with each key, or None.
            keep: `[B, n]`, 0 or 1, tokens that others attend to, or None.
            between: Called between attention and MLP; the result is then a tuple, tokens first. It belongs
                in here because the hooks that share out or compile a block act on its call.
        """
        out, q, k = self.attn.attend(self.norm1(x), bias, keep)
        x = x + self.drop_path(out)
        x, *others = (x,) if between is None else between(x, q, k)
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result if between is None else (result, *others)
