"""Selecting tokens: exact counts, hard top-k, and two differentiable relaxations of it.

Everything works on indices (sort, gather); there are no boolean masks and no device synchronisation.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparseg.errors import ConfigError

SoftTopK = Literal["budget_exact", "gumbel_softmax"]
CountRule = Literal["exact", "published"]


def num_keep(n: int, keep_ratio: float, rule: CountRule = "exact") -> int:
    """How many of `n` tokens a stage keeps.

    `exact` is `max(1, floor(keep_ratio · n))` with `keep_ratio` read as the decimal the user wrote;
    `published` is the research code's `int(n * keep_ratio)` in floating point, which may lose a token and may
    end at 0.

    Raises:
        ConfigError: keep ratio not in (0, 1].
    """
    if not 0.0 < keep_ratio <= 1.0:
        raise ConfigError(
            "a keep ratio must be above 0 and at most 1",
            received=keep_ratio,
            remedy="it is the share of tokens that stays, e.g. 0.1",
            where="keep_ratio",
        )
    if rule == "published":
        return int(n * keep_ratio)
    return max(1, int(Fraction(str(keep_ratio)) * n))


def hard_topk(scores: Tensor, k: int, protected: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Split token positions into the k highest scores and the rest.

    Args:
        scores: `[B, n]`.
        k: Number kept, 0 <= k <= n.
        protected: bool `[B, n]`, positions that rank before all others, among themselves by score; or None.

    Returns:
        Kept `[B, k]` and pruned `[B, n-k]` positions, int64, each ascending. Equal scores: the lower position
        wins.
    """
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    if protected is not None:
        # A second stable sort is exact where a large number added to the scores would round them.
        order = order.gather(1, (~protected.gather(1, order)).to(torch.uint8).argsort(dim=1, stable=True))
    return order[:, :k].sort(dim=1).values, order[:, k:].sort(dim=1).values


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise with the shape of `like` (standard deviation 1.28)."""
    uniform = torch.rand(like.shape, device=like.device, dtype=like.dtype, generator=generator)
    tiny = torch.finfo(like.dtype).tiny
    exponential = -torch.log(uniform.clamp_min(tiny))
    return -torch.log(exponential.clamp_min(tiny))


def gumbel_softmax_mask(scores: Tensor, temperature: float) -> Tensor:
    """The paper's soft mask: softmax over (noisy) scores at a temperature. Sums to 1 per row, not to k."""
    return torch.softmax(scores / temperature, dim=1)


class _BudgetExactTopK(torch.autograd.Function):
    """y = sigmoid((s - t)/tau) with t such that every row of y sums to k."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, temperature: float) -> Tensor:
        # At these two thresholds every sigmoid is above / below k/n, so they bracket the solution.
        shift = temperature * math.log(k / (scores.shape[1] - k))
        low = scores.amin(dim=1, keepdim=True) - shift
        high = scores.amax(dim=1, keepdim=True) - shift
        for _ in range(60 if scores.dtype == torch.float64 else 32):
            middle = 0.5 * (low + high)
            too_many = torch.sigmoid((scores - middle) / temperature).sum(dim=1, keepdim=True) > k
            low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        mask = torch.sigmoid((scores - 0.5 * (low + high)) / temperature)
        ctx.save_for_backward(mask)
        ctx.temperature = temperature
        return mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        slope = mask * (1 - mask) / ctx.temperature
        total = slope.sum(dim=1, keepdim=True).clamp_min(torch.finfo(mask.dtype).tiny)
        shared = (slope * grad).sum(dim=1, keepdim=True) / total
        return slope * (grad - shared), None, None


def budget_exact_mask(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Soft top-k whose rows sum to k: sigmoid((s - t)/tau) with the threshold t found by bisection.

    The vector-Jacobian product is exact: `v∘g - v (v·g)/sum v` with v = sigma'((s - t)/tau)/tau (implicit
    function theorem on sum sigma((s - t)/tau) = k). Deterministic, O(n).

    Args:
        scores: `[B, n]`, float32 or float64.
        k: Budget, 0 <= k <= n.
        temperature: tau > 0, in units of the scores.

    Returns:
        `[B, n]` in (0, 1), differentiable once.
    """
    n = scores.shape[1]
    if k == 0 or k == n:
        return torch.full_like(scores, float(k == n)) + 0.0 * scores  # keeps the predictor in the graph
    result: Tensor = _BudgetExactTopK.apply(scores, k, temperature)  # type: ignore[no-untyped-call]
    return result


def straight_through_mask(
    noisy_scores: Tensor, k: int, *, soft_topk: SoftTopK, temperature: float, protected: Tensor | None = None
) -> Tensor:
    """Hard top-k mask in the forward pass, the soft mask's gradient in the backward pass (paper, eq. 3-5).

    Args:
        noisy_scores: `[B, n]`, noise already added by the caller (or none).
        k: Number kept.
        soft_topk: Which relaxation.
        temperature: tau > 0.
        protected: bool `[B, n]` or None, see `hard_topk`. The soft mask is that of the scores alone, so that
            the scores still learn whether a protected token was worth keeping.

    Returns:
        `[B, n]` with values 0 and 1 (up to rounding) that is differentiable in the scores.
    """
    if soft_topk == "gumbel_softmax":
        soft = gumbel_softmax_mask(noisy_scores, temperature)
    else:
        soft = budget_exact_mask(noisy_scores, k, temperature)
    kept, _ = hard_topk(noisy_scores, k, protected)
    hard = torch.zeros_like(soft).scatter(1, kept, 1.0)
    return hard + (soft - soft.detach())
