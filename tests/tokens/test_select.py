"""Selection: hard top-k, the two relaxations, and the gradient that goes back through them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseg.tokens.select import (
    budget_exact_mask,
    gumbel_noise,
    gumbel_softmax_mask,
    hard_topk,
    straight_through_mask,
)


def scores(seed: int, rows: int = 3, n: int = 11, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("k", [0, 1, 4, 10, 11])
def test_hard_topk_against_sorting_by_hand(k: int) -> None:
    values = scores(0)
    kept, pruned = hard_topk(values, k)
    assert kept.dtype == pruned.dtype == torch.int64
    for row, row_kept, row_pruned in zip(values.tolist(), kept.tolist(), pruned.tolist(), strict=True):
        best = sorted(sorted(range(11), key=lambda i: -row[i])[:k])
        assert row_kept == best
        assert row_pruned == [i for i in range(11) if i not in best]


def test_ties_go_to_the_lower_position() -> None:
    kept, pruned = hard_topk(torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0], [0.0] * 5]), 3)
    assert kept.tolist() == [[0, 1, 3], [0, 1, 2]]
    assert pruned.tolist() == [[2, 4], [3, 4]]
    kept, pruned = hard_topk(torch.zeros(2, 5000), 1234)  # short rows are sorted stably by any algorithm
    assert torch.equal(kept[1], torch.arange(1234))
    assert torch.equal(pruned[0], torch.arange(1234, 5000))


@pytest.mark.parametrize("temperature", [0.01, 0.5, 5.0])
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_budget_is_exact(k: int, temperature: float) -> None:
    mask = budget_exact_mask(3 * scores(1), k, temperature)
    assert (mask.sum(dim=1) - k).abs().max() <= 1e-9
    assert mask.min() >= 0
    assert mask.max() <= 1


def test_budget_is_exact_over_many_float32_tokens() -> None:
    mask = budget_exact_mask(scores(2, 2, 4096, torch.float32), 409, 0.5)
    assert (mask.double().sum(dim=1) - 409).abs().max() <= 1e-2


def test_mask_follows_the_order_of_the_scores_and_hardens_when_cold() -> None:
    values = scores(3)
    assert torch.equal(budget_exact_mask(values, 4, 0.7).argsort(dim=1), values.argsort(dim=1))
    kept, _ = hard_topk(values, 4)
    hard = torch.zeros_like(values).scatter(1, kept, 1.0)
    assert (budget_exact_mask(values, 4, 1e-3) - hard).abs().max() <= 1e-6


def test_shift_and_scale_do_not_matter() -> None:
    values = scores(4)
    mask = budget_exact_mask(values, 4, 0.5)
    assert (budget_exact_mask(values + 100, 4, 0.5) - mask).abs().max() <= 1e-9
    assert (budget_exact_mask(values * 1e-4, 4, 0.5e-4) - mask).abs().max() <= 1e-9


def test_equal_scores_share_the_budget() -> None:
    assert (budget_exact_mask(torch.zeros(1, 8, dtype=torch.float64), 2, 0.5) - 0.25).abs().max() <= 1e-12


@pytest.mark.parametrize("k", [1, 3, 6])
def test_gradient_is_that_of_finite_differences(k: int) -> None:
    values = scores(5, 2, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: budget_exact_mask(s, k, 0.5), (values,), atol=1e-7)


def test_vector_jacobian_product_is_the_formula() -> None:
    values, grad, tau, k = scores(6).requires_grad_(), scores(7), 0.5, 4
    mask = budget_exact_mask(values, k, tau)
    (found,) = torch.autograd.grad(mask, values, grad)
    y = mask.detach()
    v = y * (1 - y) / tau
    expected = v * grad - v * (v * grad).sum(dim=1, keepdim=True) / v.sum(dim=1, keepdim=True)
    assert (found - expected).abs().max() <= 1e-12
    # A budget that stays k cannot react to a gradient that is the same for all tokens.
    (none,) = torch.autograd.grad(budget_exact_mask(values, k, tau), values, torch.ones_like(grad))
    assert none.abs().max() <= 1e-12


@pytest.mark.parametrize("k", [0, 11])
def test_nothing_or_everything_kept(k: int) -> None:
    values = scores(8).requires_grad_()
    mask = budget_exact_mask(values, k, 0.5)
    assert mask.tolist() == [[float(k == 11)] * 11] * 3
    (grad,) = torch.autograd.grad(mask.sum(), values)
    assert grad.abs().max() == 0


def test_saturated_scores_give_a_finite_gradient() -> None:
    values = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    (grad,) = torch.autograd.grad(budget_exact_mask(values, 1, 1e-3)[0, 0], values)
    assert grad.isfinite().all()


def test_softmax_mask_sums_to_one_not_to_k() -> None:
    mask = gumbel_softmax_mask(scores(9), 0.7)
    assert (mask.sum(dim=1) - 1).abs().max() <= 1e-12
    expected = (scores(9)[0] / 0.7).exp() / (scores(9)[0] / 0.7).exp().sum()
    assert (mask[0] - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("relaxation", ["budget_exact", "gumbel_softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_straight_through_is_hard_forwards_and_soft_backwards(relaxation: str, dtype: torch.dtype) -> None:
    values, grad, k = scores(10, dtype=dtype).requires_grad_(), scores(11, dtype=dtype), 4
    mask = straight_through_mask(values, k, soft_topk=relaxation, temperature=0.5)  # type: ignore[arg-type]
    kept, _ = hard_topk(values, k)
    assert torch.equal(mask.detach(), torch.zeros_like(values).scatter(1, kept, 1.0))
    soft = budget_exact_mask(values, k, 0.5) if relaxation == "budget_exact" else (values / 0.5).softmax(1)
    (found,) = torch.autograd.grad(mask, values, grad)
    (expected,) = torch.autograd.grad(soft, values, grad)
    assert torch.equal(found, expected)
    assert found.abs().max() > 1e-3


def test_softmax_gradient_is_smaller_by_about_the_number_of_tokens() -> None:
    """The measured weakness of the published relaxation, and why the budget-exact one is the default."""
    values, grad, k = scores(12, 1, 512), scores(13, 1, 512), 51
    sizes = []
    for relaxation in ("budget_exact", "gumbel_softmax"):
        leaf = values.clone().requires_grad_()
        mask = straight_through_mask(leaf, k, soft_topk=relaxation, temperature=0.5)  # type: ignore[arg-type]
        sizes.append(float(torch.autograd.grad(mask, leaf, grad)[0].norm()))
    assert sizes[0] > 2 * sizes[1]


def test_gumbel_noise_has_its_distribution_and_its_seed() -> None:
    like = torch.empty(1, 40_000)
    noise = gumbel_noise(like, torch.Generator().manual_seed(0))
    assert noise.isfinite().all()
    assert abs(float(noise.mean()) - 0.5772) < 0.02
    assert abs(float(noise.std()) - 1.2825) < 0.02
    assert torch.equal(noise, gumbel_noise(like, torch.Generator().manual_seed(0)))
    assert not torch.equal(noise, gumbel_noise(like, torch.Generator().manual_seed(1)))
