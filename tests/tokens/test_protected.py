"""Protected tokens: which are kept, against a reference written with loops, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseg.errors import ConfigError
from sparseg.tokens.prune import TokenPruning, full_grid
from sparseg.tokens.select import hard_topk, straight_through_mask
from sparseg.tokens.stages import Selection, StageTokens


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_kept(scores: list[float], k: int, protected: list[bool]) -> list[int]:
    """One by one: the best protected position left, then the best other one."""
    kept: list[int] = []
    while len(kept) < k:
        left = [i for i in range(len(scores)) if i not in kept]
        first = [i for i in left if protected[i]] or left
        best = first[0]
        for i in first:
            if scores[i] > scores[best]:
                best = i
        kept.append(best)
    return sorted(kept)


@pytest.mark.parametrize("k", [0, 1, 5, 12, 20])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_protected_positions_come_first_and_the_best_of_too_many_win(k: int, share: float) -> None:
    scores = seeded(k, 4, 20).round(decimals=1)  # with equal scores, too
    protected = torch.rand(4, 20, generator=torch.Generator().manual_seed(7)) < share
    kept, pruned = hard_topk(scores, k, protected)
    for row in range(4):
        expected = slow_kept(scores[row].tolist(), k, protected[row].tolist())
        assert kept[row].tolist() == expected
        assert pruned[row].tolist() == [i for i in range(20) if i not in expected]


def test_protection_holds_for_scores_of_any_size() -> None:
    scores = torch.tensor([[1e30, 2.0, -torch.inf, 1e30, -1e30]])
    kept, _ = hard_topk(scores, 2, torch.tensor([[False, False, True, False, True]]))
    assert kept.tolist() == [[2, 4]]


@pytest.mark.parametrize("soft_topk", ["budget_exact", "gumbel_softmax"])
def test_protection_changes_the_hard_mask_and_no_gradient(soft_topk: str) -> None:
    protected = torch.zeros(2, 9, dtype=torch.bool)
    protected[:, :3] = True
    weights, results = seeded(1, 2, 9), []
    for given in (None, protected):
        scores = seeded(2, 2, 9).requires_grad_()
        mask = straight_through_mask(scores, 4, soft_topk=soft_topk, temperature=0.5, protected=given)  # type: ignore[arg-type]
        (mask * weights).sum().backward()
        results.append((mask.detach().round(), scores.grad))
    assert results[1][0][:, :3].tolist() == [[1.0] * 3] * 2
    assert results[1][0].sum(dim=1).tolist() == [4.0, 4.0]
    assert not torch.equal(results[0][0], results[1][0])
    assert results[0][1] is not None
    assert torch.equal(results[0][1], results[1][1])


def test_protected_grid_positions_are_found_among_the_tokens_present() -> None:
    torch.manual_seed(3)
    stage = TokenPruning(8).train()
    present = StageTokens(seeded(4, 2, 6, 8), torch.tensor([[0, 3, 4, 9, 10, 11], [1, 2, 3, 5, 7, 8]]))
    scores = stage.scores(present.tokens)
    worst = scores.argsort(dim=1)[:, :2]
    protected = torch.zeros(2, 12, dtype=torch.bool).scatter(1, present.indices.gather(1, worst), value=True)
    protected[:, 6] = True  # left long ago
    kept, pruned, decision = stage(present, 2, Selection(protected=protected))
    assert torch.equal(kept.indices, present.indices.gather(1, worst.sort(dim=1).values))
    assert torch.equal(decision.kept, kept.indices)
    assert torch.equal(decision.indices, present.indices)
    assert torch.equal(decision.scores, scores)
    assert torch.equal(
        kept.tokens, present.tokens.gather(1, worst.sort(dim=1).values[..., None].expand(-1, -1, 8))
    )
    assert pruned.gate is not None
    assert pruned.gate.tolist() == [[1.0] * 4] * 2
    plain = stage.eval()(present, 2, Selection(protected=protected))
    assert torch.equal(plain.kept.indices, present.indices.gather(1, hard_topk(scores, 2)[0]))


def test_reported_scores_are_those_without_noise() -> None:
    torch.manual_seed(5)
    stage, present = TokenPruning(8, noise_scale=1.0).train(), full_grid(seeded(6, 3, 40, 8))
    result = stage(present, 10)
    assert torch.equal(result.decision.scores, stage.scores(present.tokens))
    assert not torch.equal(result.decision.kept, hard_topk(result.decision.scores, 10)[0])
    quiet = stage(present, 10, Selection(noise_scale=0.0))
    assert torch.equal(quiet.decision.kept, hard_topk(quiet.decision.scores, 10)[0])


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"temperature": 0.0}, "selection.temperature: a temperature must be above 0; received 0.0"),
        ({"temperature": float("nan")}, "selection.temperature: a temperature must be above 0"),
        ({"noise_scale": -1.0}, "selection.noise_scale: a noise scale must be 0 or more; received -1.0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Selection(**values)  # type: ignore[arg-type]
