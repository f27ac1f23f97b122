"""Attention, block, stochastic depth and position tables."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparseg.layers.attention import Attention, explicit_attention
from sparseg.layers.block import Block, DropPath
from sparseg.layers.position import resize_position, sine_cosine_position


def seeded(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("heads", "n", "bias"), [(1, 7, True), (2, 65, True), (4, 1, False), (8, 30, False)])
def test_fused_attention_is_the_explicit_one(heads: int, n: int, bias: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(24 if heads < 8 else 32, heads, qkv_bias=bias)
    x = seeded(1, 2, n, attention.proj.in_features)
    q, k, v = attention.split_heads(attention.qkv(x))
    expected = attention.proj(explicit_attention(q, k, v).transpose(1, 2).flatten(2))
    assert (attention(x) - expected).abs().max() <= 1e-6


def test_explicit_attention_one_head_at_a_time() -> None:
    torch.manual_seed(2)
    attention = Attention(12, 3).double()
    x = seeded(3, 1, 5, 12, dtype=torch.float64)
    rows = (x[0] @ attention.qkv.weight.T + attention.qkv.bias).detach()
    heads = []
    for head in range(3):
        q, k, v = (rows[:, part * 12 + head * 4 : part * 12 + (head + 1) * 4] for part in range(3))
        weights = torch.zeros(5, 5, dtype=torch.float64)
        for i in range(5):
            logits = [float(q[i] @ k[j]) / math.sqrt(4) for j in range(5)]
            total = sum(math.exp(value) for value in logits)
            weights[i] = torch.tensor([math.exp(value) / total for value in logits], dtype=torch.float64)
        heads.append(weights @ v)
    expected = torch.cat(heads, dim=1) @ attention.proj.weight.T + attention.proj.bias
    assert (attention(x)[0] - expected).abs().max() <= 1e-12


def test_block_is_two_residual_branches_behind_norms() -> None:
    torch.manual_seed(4)
    block = Block(12, 3, mlp_ratio=2.5, norm_eps=1e-3).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = seeded(5, 2, 6, 12, dtype=torch.float64)

    def norm(value: Tensor, part: torch.nn.LayerNorm) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * part.weight + part.bias

    first = x + block.attn(norm(x, block.norm1))
    hidden = F.gelu(norm(first, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    expected = first + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    assert hidden.shape[-1] == 30
    assert (block(x) - expected).abs().max() <= 1e-10


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(6)
    drop, x = DropPath(0.25), torch.ones(8000, 3, 2)
    out = drop(x)
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert set(per_sample[:, 0].unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs(float(out.mean()) - 1) < 0.02


def test_drop_path_leaves_evaluation_alone() -> None:
    x = seeded(7, 4, 3)
    assert torch.equal(DropPath(0.9).eval()(x), x)
    assert torch.equal(DropPath(0.0).train()(x), x)
    block = Block(12, 3, drop_path=0.9).eval()
    plain = Block(12, 3).eval()
    plain.load_state_dict(block.state_dict())
    assert torch.equal(block(seeded(8, 2, 5, 12)), plain(seeded(8, 2, 5, 12)))


@pytest.mark.parametrize(("grid", "dim"), [((2, 3, 4), 24), ((3, 1, 2), 26), ((1, 1, 1), 6), ((2, 2, 2), 4)])
def test_position_table_against_the_formula(grid: tuple[int, int, int], dim: int) -> None:
    rows = []
    for place in ((i, j, k) for i in range(grid[0]) for j in range(grid[1]) for k in range(grid[2])):
        row: list[float] = []
        for coordinate in place:
            angles = [coordinate / 10000 ** (f / (dim // 6)) for f in range(dim // 6)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row + [0.0] * (dim - len(row)))
    assert (sine_cosine_position(grid, dim) - torch.tensor(rows)).abs().max() <= 1e-6


def test_resize_to_the_same_grid_is_the_table_itself() -> None:
    table = seeded(9, 1, 24, 5)
    assert resize_position(table, (2, 3, 4), (2, 3, 4)) is table


@pytest.mark.parametrize("new_grid", [(1, 1, 1), (5, 3, 2), (4, 6, 8)])
def test_resize_keeps_a_constant_field(new_grid: tuple[int, int, int]) -> None:
    row = seeded(10, 5)
    resized = resize_position(row.expand(1, 24, 5), (2, 3, 4), new_grid)
    assert (resized - row).abs().max() <= 1e-6
    assert resized.shape[1] == math.prod(new_grid)


def test_resize_keeps_a_ramp_on_its_axis() -> None:
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1, 1).expand(1, 2, 4, 3, 1).reshape(1, 24, 1)
    resized = resize_position(ramp, (2, 4, 3), (3, 8, 2)).reshape(3, 8, 2)
    # Half-voxel centres: the inner samples lie at 0.25, 0.75, ..., the outer ones are clamped.
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    assert (resized - expected.reshape(1, 8, 1)).abs().max() <= 1e-6
