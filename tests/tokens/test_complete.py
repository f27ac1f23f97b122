"""Rival completions by hand, and that forgotten tokens leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseg.layers.position import sine_cosine_position
from sparseg.tokens.complete import (
    LastLayerFusion,
    MaskTokenCompletion,
    NearestCompletion,
    copy_nearest,
    fill_with_token,
    nearest_survivors,
)
from sparseg.tokens.stages import StageTokens

GRID = (2, 2, 2)
PRUNED, KEPT = [0, 3, 4, 6, 7], [1, 2, 5]


def groups(requires_grad: bool = False) -> tuple[Tensor, list[StageTokens]]:
    tokens = torch.randn(1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [tokens[:, PRUNED].clone().requires_grad_(requires_grad), tokens[:, KEPT]]
    return tokens, [
        StageTokens(row, torch.tensor([index])) for row, index in zip(rows, (PRUNED, KEPT), strict=True)
    ]


def mask_completion(depth: int = 1) -> MaskTokenCompletion:
    torch.manual_seed(1)
    return MaskTokenCompletion(
        8, assembly_dim=12, assembly_depth=depth, num_heads=2, mlp_ratio=2.0, norm_eps=1e-6, skip_token=True
    ).double()


@pytest.mark.parametrize(
    ("grid", "survivors", "expected"),
    [
        ((1, 1, 5), [0, 3], [0, 0, 1, 1, 1]),
        ((1, 5, 1), [0, 2], [0, 0, 1, 1, 1]),  # place 1 lies between both: the first
        ((2, 2, 2), [1, 6], [0, 0, 1, 0, 1, 0, 1, 1]),
        ((3, 1, 2), [5], [0] * 6),
    ],
)
def test_nearest_by_hand(grid: tuple[int, int, int], survivors: list[int], expected: list[int]) -> None:
    indices = torch.tensor([survivors])
    assert nearest_survivors(indices, grid).tolist() == [expected]
    length = len(expected)
    weight = torch.zeros(1, length).index_fill(1, indices[0], 1.0)
    everyone = nearest_survivors(torch.arange(length)[None], grid, weight)
    assert everyone.tolist() == [[survivors[i] for i in expected]]


def test_nearest_is_the_nearest_by_a_loop() -> None:
    grid, generator = (3, 4, 5), torch.Generator().manual_seed(2)
    indices = torch.randperm(60, generator=generator)[:7].sort().values[None]
    places = [(i // 20, i // 5 % 4, i % 5) for i in range(60)]
    for place, found in zip(places, nearest_survivors(indices, grid)[0].tolist(), strict=True):
        far = [sum((a - b) ** 2 for a, b in zip(place, places[i], strict=True)) for i in indices[0].tolist()]
        assert far.index(min(far)) == found


def test_copy_nearest_leaves_survivors_where_they_are() -> None:
    _, (_, survivors) = groups()
    assert torch.equal(copy_nearest(survivors, GRID)[:, KEPT], survivors.tokens)


def test_one_token_stands_at_every_pruned_place() -> None:
    _, (_, survivors) = groups()
    filled = fill_with_token(survivors, torch.full((1, 1, 8), 7.0), GRID)
    assert torch.equal(filled[:, KEPT], survivors.tokens)
    assert (filled[:, PRUNED] == 7).all()


def test_weights_fill_as_removal_does() -> None:
    tokens, (_, survivors) = groups()
    weight = torch.zeros(1, 8, dtype=torch.float64).index_fill(1, torch.tensor(KEPT), 1.0)
    everyone = StageTokens(tokens, torch.arange(8)[None], weight=weight)
    token = torch.full((1, 1, 8), 7.0)
    assert torch.equal(fill_with_token(everyone, token, GRID), fill_with_token(survivors, token, GRID))
    assert torch.equal(copy_nearest(everyone, GRID), copy_nearest(survivors, GRID))


def test_mask_token_without_blocks_by_hand() -> None:
    net, (tokens, stages) = mask_completion(depth=0), groups()
    position, rows = sine_cosine_position(GRID, 12), []
    for place in range(8):
        x = net.projection(tokens[0, place]) if place in KEPT else net.mask_token[0, 0]
        rows.append(net.out_linear(net.out_norm(x + position[place])))
    assert (net(stages, None, GRID)[0] - torch.stack(rows)).abs().max() <= 1e-12


def test_class_token_takes_part_in_the_blocks() -> None:
    net, (_, stages) = mask_completion(), groups()
    one, two = (net(stages, torch.full((1, 1, 8), x, dtype=torch.float64), GRID) for x in (0.0, 1.0))
    assert one.shape == (1, 8, 8)
    assert (one - two).abs().max() > 1e-6


def test_last_layer_fusion_by_hand() -> None:
    torch.manual_seed(3)
    net, (tokens, stages) = LastLayerFusion(8, norm_eps=1e-6).double(), groups()
    rows = [
        net.survivor_linear(tokens[0, i]) if i in KEPT else net.pruned_linear(net.pruned_norm(tokens[0, i]))
        for i in range(8)
    ]
    assert (net(stages, None, GRID)[0] - torch.stack(rows)).abs().max() <= 1e-12
    gated = StageTokens(stages[0].tokens, stages[0].indices, torch.full((1, 5), 2.0, dtype=torch.float64))
    assert (
        net([gated, stages[1]], None, GRID)[:, PRUNED] - 2 * torch.stack(rows)[PRUNED]
    ).abs().max() <= 1e-12


def test_nearest_copy_by_hand() -> None:
    torch.manual_seed(4)
    net, (tokens, stages) = NearestCompletion(8).double(), groups()
    # Survivors 1 (0,0,1), 2 (0,1,0), 5 (1,0,1); ties go to the lower place.
    source = [1, 1, 2, 1, 5, 5, 2, 5]
    assert (net(stages, None, GRID) - net.linear(tokens[:, source])).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", ["mask_token", "nearest"])
def test_forgotten_tokens_leave_no_trace(kind: str) -> None:
    net = mask_completion() if kind == "mask_token" else NearestCompletion(8).double()
    _, stages = groups(requires_grad=True)
    everything = net(stages, None, GRID).sum() + net.place_skip(stages, GRID).sum()
    (gradient,) = torch.autograd.grad(everything, stages[0].tokens, allow_unused=True)
    assert gradient is None


def test_remembered_tokens_stand_in_the_skips() -> None:
    tokens, stages = groups()
    assert torch.equal(LastLayerFusion(8, norm_eps=1e-6).place_skip(stages, GRID), tokens)
