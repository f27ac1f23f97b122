"""Fused tokens (EViT) and merged tokens (ToMe), worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparseg.layers.attention import Attention, class_attention
from sparseg.tokens.fuse import fuse_pruned, fuse_tokens
from sparseg.tokens.merge import (
    MergedTokens,
    match_tokens,
    merge_tokens,
    size_bias,
    unmerge_tokens,
    unmerged,
)
from sparseg.tokens.stages import StageScores, StageTokens


def test_class_attention_is_the_first_row_of_the_softmax_mean_over_heads() -> None:
    # exp(P) of the class token: 1, 2, 3 in the first head, 2, 1, 1 in the second.
    k = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 1.0]], dtype=torch.float64).log().reshape(1, 2, 3, 1)
    q = torch.ones(1, 2, 3, 1, dtype=torch.float64)
    q[:, :, 1:] = 17.0  # other queries do not matter
    assert class_attention(q, k)[0].tolist() == pytest.approx([(1 / 3 + 1 / 4) / 2, (1 / 2 + 1 / 4) / 2])


def test_class_attention_is_scaled_by_the_width_of_a_head() -> None:
    q, k = torch.ones(1, 1, 2, 4), torch.tensor([[0.0] * 4, [1.0] * 4]).reshape(1, 1, 2, 4)
    assert float(class_attention(q, k)) == pytest.approx(math.exp(2) / (1 + math.exp(2)))  # 4/sqrt(4) = 2


def test_fused_token_is_the_sum_weighted_by_attention() -> None:
    tokens, weights = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[0.1, 0.3]])
    assert fuse_tokens(tokens, weights)[0, 0].tolist() == pytest.approx([1.0, 1.4])


def test_the_token_fused_before_is_fused_again() -> None:
    decision = StageScores(torch.tensor([[0.4, 0.1, 0.3]]), torch.tensor([[2, 5, 9]]), torch.tensor([[2]]))
    pruned = StageTokens(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[5, 9]]))
    old, weight = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[0.2]])
    first, second = fuse_pruned(pruned, decision, None, None), fuse_pruned(pruned, decision, old, weight)
    assert first is not None
    assert second is not None
    assert first[0, 0].tolist() == pytest.approx([1.0, 1.4])
    assert second[0, 0].tolist() == pytest.approx([3.0, 5.4])
    nothing = StageTokens(pruned.tokens[:, :0], pruned.indices[:, :0])
    assert fuse_pruned(nothing, decision, old, weight) is old


# Sets A = tokens 0, 2, 4 and B = 1, 3. Best partners: 0 -> 1 (cosine 1), 2 -> 3 (0.8), 4 -> 1 (0).
KEYS = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 4.0], [0.0, -1.0]]])


@pytest.mark.parametrize(
    ("r", "kept", "target"),
    [
        (0, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (1, [1, 2, 3, 4], [1, 1, 2, 3, 4]),
        (2, [1, 3, 4], [1, 1, 3, 3, 4]),
        (3, [1, 3], [1, 1, 3, 3, 1]),
    ],
)
def test_bipartite_matching_by_hand(r: int, kept: list[int], target: list[int]) -> None:
    matching = match_tokens(KEYS, r)
    assert matching.kept.tolist() == [kept]
    assert matching.target.tolist() == [target]


def test_merging_twice_averages_by_size() -> None:
    start = unmerged(torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]).reshape(1, 5, 1))
    once = merge_tokens(start, match_tokens(KEYS, 2))
    assert once.tokens.flatten().tolist() == [2, 6, 9]
    assert once.sizes.tolist() == [[2, 2, 1]]
    assert once.members.tolist() == [[0, 0, 1, 1, 2]]
    # Now A = tokens 0, 2, B = token 1; token 2 (one patch) is closest to it (two patches): (9 + 2 · 6)/3.
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]])
    twice = merge_tokens(once, match_tokens(keys, 1))
    assert twice.tokens.flatten().tolist() == [2, 7]
    assert twice.sizes.tolist() == [[2, 3]]
    assert unmerge_tokens(twice).flatten().tolist() == [2, 2, 7, 7, 7]


def test_merging_loses_no_patch_and_no_mass() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(3, 27, 5, dtype=torch.float64)
    present = unmerged(tokens)
    for r in (9, 9, 4, 2):
        present = merge_tokens(present, match_tokens(torch.randn(3, present.tokens.shape[1], 4), r))
    assert present.tokens.shape[1] == 3
    assert (present.sizes.sum(dim=1) == 27).all()
    counts = torch.stack([torch.bincount(row, minlength=3) for row in present.members])
    assert torch.equal(counts, present.sizes.long())
    assert (unmerge_tokens(present).sum(dim=1) - tokens.sum(dim=1)).abs().max() <= 1e-5
    assert not torch.equal(present.members[0], present.members[1])


def test_proportional_attention_counts_a_token_as_often_as_it_has_members() -> None:
    """Three equal patches as one token of size 3 draw the attention that they draw one by one."""
    torch.manual_seed(1)
    attention = Attention(8, 2).double()
    two = torch.randn(1, 2, 8, dtype=torch.float64)
    four = two[:, [0, 1, 1, 1]]
    bias: Tensor = size_bias(torch.tensor([[1.0, 3.0]]))
    assert (attention.attend(two, bias).out - attention(four)[:, :2]).abs().max() <= 1e-7
    assert (attention(two) - attention(four)[:, :2]).abs().max() > 1e-4


def test_a_size_survives_half_precision() -> None:
    start = MergedTokens(
        torch.ones(1, 2, 1, dtype=torch.bfloat16),
        torch.tensor([[300.0, 1.0]]),
        torch.tensor([[0] * 300 + [1]]),
    )
    assert merge_tokens(start, match_tokens(torch.ones(1, 2, 3), 1)).sizes.tolist() == [[301]]
