"""Rotary positions: angles by hand, products that depend on the way between places, tokens without one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparseg.layers.attention import Attention, explicit_attention
from sparseg.layers.block import EvaBlock
from sparseg.layers.rotary import rotary_table, rotate, take_places

GRID = (3, 4, 2)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pairs_turn_by_place_times_frequency_axis_by_axis() -> None:
    # Width 12: two frequencies per axis, 1 and 1/100. Place (2, 3, 1) is row (2 * 4 + 3) * 2 + 1.
    table = rotary_table(GRID, 12).double()
    angles = [2.0, 0.02, 3.0, 0.03, 1.0, 0.01]
    x = seeded(0, 1, 1, 1, 12)
    row = torch.tensor([[(2 * 4 + 3) * 2 + 1]])
    turned = rotate(x, take_places(table, row))[0, 0, 0]
    for pair, angle in enumerate(angles):
        a, b = float(x[0, 0, 0, 2 * pair]), float(x[0, 0, 0, 2 * pair + 1])
        expected = complex(a, b) * complex(math.cos(angle), math.sin(angle))
        assert abs(complex(turned[2 * pair], turned[2 * pair + 1]) - expected) < 1e-6


def test_a_product_depends_on_the_way_between_two_places_alone() -> None:
    table = rotary_table(GRID, 18).double()
    q, k = seeded(1, 18), seeded(2, 18)

    def product(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        rows = torch.tensor([[(h * 4 + w) * 2 + d for h, w, d in (a, b)]])
        first, second = rotate(torch.stack((q, k))[None, None], take_places(table, rows))[0, 0]
        return float(first @ second)

    assert product((0, 1, 0), (1, 3, 1)) == pytest.approx(product((1, 0, 0), (2, 2, 1)), abs=1e-5)
    assert abs(product((0, 1, 0), (1, 3, 1)) - product((1, 3, 1), (0, 1, 0))) > 1e-2


def test_tokens_without_a_place_are_not_turned_and_lengths_stay() -> None:
    table, indices = rotary_table(GRID, 12).double(), torch.tensor([[5, 7, 20], [0, 1, 23]])
    x = seeded(3, 2, 4, 6, 12)
    turned = rotate(x, take_places(table, indices, before=1, after=2))
    assert torch.equal(turned[:, :, [0, 4, 5]], x[:, :, [0, 4, 5]])
    assert (turned.norm(dim=-1) - x.norm(dim=-1)).abs().max() < 1e-6
    for number, row in enumerate(indices):
        alone = rotate(x[number : number + 1, :, 1:4], take_places(table, row[None]))
        assert torch.equal(turned[number : number + 1, :, 1:4], alone)


def test_attention_turns_queries_and_keys_but_not_values() -> None:
    torch.manual_seed(0)
    attention = Attention(24, 2, inner_norm_eps=1e-3).double()
    x = seeded(4, 1, 5, 24)
    places = take_places(rotary_table(GRID, 12).double(), torch.tensor([[0, 3, 9, 14, 23]]))
    q, k, v = attention.split_heads(attention.qkv(x))
    mixed = explicit_attention(rotate(q, places), rotate(k, places), v).transpose(1, 2).flatten(2)
    centred = mixed - mixed.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    expected = attention.proj(normed)
    assert (attention.attend(x, places=places).out - expected).abs().max() < 1e-9
    assert (attention.attend(x).out - expected).abs().max() > 1e-3


def test_the_block_is_two_scaled_branches_with_a_gated_mlp() -> None:
    torch.manual_seed(1)
    block = EvaBlock(12, 2, mlp_ratio=8 / 3, norm_eps=1e-3).double()
    assert block.mlp.fc2.in_features == 32
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = seeded(5, 2, 6, 12)

    def norm(value: Tensor, part: torch.nn.LayerNorm) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * part.weight + part.bias

    first = x + block.attn(norm(x, block.norm1)) * block.scale1.weight
    inner = norm(first, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    gate, value = inner[..., :32], inner[..., 32:]
    hidden = norm(gate / (1 + (-gate).exp()) * value, block.mlp.norm)
    second = first + (hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias) * block.scale2.weight
    assert (block(x) - second).abs().max() < 1e-9


def test_branches_start_at_a_tenth() -> None:
    block = EvaBlock(12, 2)
    assert torch.equal(block.scale1.weight, torch.full((12,), 0.1))
    with torch.no_grad():
        block.scale2.weight.zero_()
        block.scale1.weight.zero_()
    x = torch.randn(1, 3, 12)
    assert torch.equal(block(x), x)


def test_heads_that_cannot_share_three_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a multiple of 6 .*got 16"):
        rotary_table(GRID, 16)
