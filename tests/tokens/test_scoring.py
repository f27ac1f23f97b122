"""Scores without weights, each against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseg.errors import ConfigError
from sparseg.tokens.prune import TokenPruning, full_grid
from sparseg.tokens.scoring import (
    fixed_scores,
    patch_deviation,
    patch_entropy,
    position_noise,
    stride_scores,
)
from sparseg.tokens.stages import Selection, StageContext, StageTokens


def image_of(*patches: list[float]) -> Tensor:
    """One channel, patches of 2³ voxels in a row along the last axis, each given by its 8 values."""
    cubes = [torch.tensor(values).reshape(2, 2, 2) for values in patches]
    return torch.cat(cubes, dim=2)[None, None]


def context(image: Tensor | None = None, stage: int = 0, attention: Tensor | None = None) -> StageContext:
    return StageContext(torch.zeros(1, 1, 2, 2, 2) if image is None else image, (2, 2, 2), stage, attention)


@pytest.mark.parametrize(
    ("n", "k", "chosen"), [(7, 3, [0, 2, 4]), (8, 4, [0, 2, 4, 6]), (5, 5, [0, 1, 2, 3, 4]), (9, 1, [0])]
)
def test_stride_takes_every_nth_token_present(n: int, k: int, chosen: list[int]) -> None:
    present = StageTokens(torch.zeros(2, n, 4), torch.arange(100, 100 + n).expand(2, n))
    stage = TokenPruning(4, scoring="stride").eval()
    kept, pruned, decision = stage(present, k, None, context())
    assert kept.indices.tolist() == [[100 + i for i in chosen]] * 2
    assert pruned.indices.shape[1] == n - k
    assert stride_scores(present.indices, k).sum(dim=1).tolist() == [k, k]
    assert torch.equal(decision.kept, kept.indices)


@pytest.mark.parametrize("n", range(1, 40))
def test_stride_counts_are_exact(n: int) -> None:
    indices = torch.arange(n)[None]
    assert [int(stride_scores(indices, k).sum()) for k in range(n + 1)] == list(range(n + 1))


def test_deviation_of_a_patch() -> None:
    image = image_of([5.0] * 8, [0.0] * 4 + [2.0] * 4, [1.0] * 6 + [5.0] * 2)
    # Deviations 0, 1, and sqrt((6 · 1² + 2 · 3²) / 8) = sqrt(3).
    assert patch_deviation(image, (2, 2, 2))[0].tolist() == pytest.approx([0, 1, 3**0.5])


def test_entropy_of_a_patch() -> None:
    image = image_of([0.0] * 8, [0.0] * 4 + [32.0] * 4, [0.0, 0, 8, 8, 16, 16, 31, 31], [0.0] * 6 + [9.0] * 2)
    # 1, 2, 4 values equally often: 0, 1, 2 bits; shares 3/4 and 1/4: 2 - 0.75 log2 3 bits.
    expected = [0, 1, 2, 2 - 0.75 * 1.5849625]
    assert patch_entropy(image, (2, 2, 2))[0].tolist() == pytest.approx(expected)
    both = torch.cat((image, torch.ones_like(image)), dim=1)  # a second channel without any information
    assert patch_entropy(both, (2, 2, 2))[0].tolist() == pytest.approx([value / 2 for value in expected])
    assert patch_entropy(torch.ones(1, 1, 2, 2, 4), (2, 2, 2)).tolist() == [[0, 0]]


@pytest.mark.parametrize("scoring", ["intensity", "entropy"])
def test_image_scores_follow_the_grid_positions_of_the_tokens(scoring: str) -> None:
    image = image_of([0.0] * 8, [0.0, 1, 2, 3, 4, 5, 6, 7], [0.0] * 4 + [7.0] * 4, [1.0] * 8)
    present = StageTokens(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 3]]))
    kept, pruned, _ = TokenPruning(4, scoring=scoring).eval()(present, 1, None, context(image))  # type: ignore[arg-type]
    assert kept.indices.tolist() == [[1]]
    assert pruned.indices.tolist() == [[0, 3]]


def test_position_noise_looks_uniform_and_depends_on_place_and_stage_only() -> None:
    indices = torch.arange(4096)[None]
    first, second = position_noise(indices, 0)[0], position_noise(indices, 1)[0]
    for values in (first, second):
        assert float(values.min()) >= 0
        assert float(values.max()) < 1
        assert abs(float(values.mean()) - 0.5) < 0.02
        assert torch.histc(values, 8, 0, 1).sub(512).abs().max() < 90  # about four deviations
    pairs = torch.stack((first, second, first.roll(1), first.roll(16), first.roll(256)))
    assert (torch.corrcoef(pairs) - torch.eye(5)).abs().max() < 0.07
    assert torch.equal(position_noise(torch.tensor([[7, 3000]]), 0)[0], first[[7, 3000]])


def test_chance_is_fixed_in_evaluation_and_fresh_in_training() -> None:
    stage, present = TokenPruning(4, scoring="random"), full_grid(torch.zeros(3, 60, 4))
    evaluated = stage.eval()(present, 20, None, context())
    assert torch.equal(evaluated.kept.indices, stage(present, 20, None, context()).kept.indices)
    assert torch.equal(evaluated.kept.indices[0], evaluated.kept.indices[2])
    assert not torch.equal(evaluated.kept.indices, stage(present, 20, None, context(stage=1)).kept.indices)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        trained = stage.train()(present, 20, None, context())
        draws.append(trained.kept.indices)
        assert torch.equal(trained.decision.scores, evaluated.decision.scores)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_class_attention_is_handed_through() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.2, 0.05]])
    present = full_grid(torch.zeros(1, 4, 4))
    assert fixed_scores("class_attention", present, 2, context(attention=attention)) is attention
    kept = TokenPruning(4, scoring="class_attention")(present, 2, None, context(attention=attention)).kept
    assert kept.indices.tolist() == [[1, 2]]
    assert kept.gate is None


@pytest.mark.parametrize("scoring", ["random", "stride", "intensity", "entropy", "class_attention"])
def test_rules_have_no_weights_and_respect_protection(scoring: str) -> None:
    stage = TokenPruning(4, scoring=scoring).train()  # type: ignore[arg-type]
    assert list(stage.parameters()) == []
    image = torch.rand(1, 1, 2, 2, 20, generator=torch.Generator().manual_seed(0))
    protected = torch.zeros(1, 10, dtype=torch.bool).index_fill(1, torch.tensor([3, 8]), value=True)
    pruned = stage(
        full_grid(torch.zeros(1, 10, 4)),
        3,
        Selection(protected=protected),
        context(image, 0, torch.rand(1, 10)),
    ).pruned
    assert not {3, 8} & set(pruned.indices[0].tolist())
    with pytest.raises(ConfigError, match="only a scoring that looks at tokens"):
        stage.scores(torch.zeros(1, 3, 4))
