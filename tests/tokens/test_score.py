"""The score predictor against a loop, and score scales that never change the order."""

from __future__ import annotations

import math

import pytest
import torch

from sparseg.tokens.embed import PatchEmbed
from sparseg.tokens.score import ScorePredictor, transform_scores


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def linear(weight: list[list[float]], bias: list[float], x: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def scores_by_hand(state: dict[str, list], tokens: list[list[float]]) -> list[float]:
    hidden = []
    for token in tokens:
        mean = sum(token) / len(token)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in token) / len(token) + 1e-5)
        scale, shift = state["in_mlp.0.weight"], state["in_mlp.0.bias"]
        normed = [(v - mean) / deviation * s + t for v, s, t in zip(token, scale, shift, strict=True)]
        hidden.append([gelu(v) for v in linear(state["in_mlp.1.weight"], state["in_mlp.1.bias"], normed)])
    half = len(tokens[0]) // 2
    shared = [sum(row[c] for row in hidden) / len(hidden) for c in range(half, 2 * half)]
    result = []
    for row in hidden:
        x = row[:half] + shared
        for number in (0, 2, 4):
            x = linear(state[f"out_mlp.{number}.weight"], state[f"out_mlp.{number}.bias"], x)
            x = x if number == 4 else [gelu(v) for v in x]
        result.append(x[0])
    return result


def test_predictor_is_the_loop() -> None:
    torch.manual_seed(0)
    predictor = ScorePredictor(8).double()
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    state = {name: value.tolist() for name, value in predictor.state_dict().items()}
    expected = [scores_by_hand(state, rows) for rows in tokens.tolist()]
    assert (predictor(tokens) - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-12


def test_other_tokens_matter_only_through_their_mean() -> None:
    torch.manual_seed(1)
    predictor = ScorePredictor(8).double()
    tokens = torch.randn(1, 6, 8, dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert (predictor(tokens[:, order]) - predictor(tokens)[:, order]).abs().max() <= 1e-12
    assert (predictor(tokens)[:, :3] - predictor(tokens[:, :3])).abs().max() > 1e-6


@pytest.mark.parametrize("transform", ["standardize", "log_sigmoid", "none"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_no_transform_changes_the_order(transform: str, scale: float) -> None:
    raw = scale * torch.randn(3, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(transform_scores(raw, transform).argsort(dim=1), raw.argsort(dim=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [2e-5, 1.0, 1e3])
def test_standardised_scores_have_mean_zero_and_spread_one(scale: float) -> None:
    raw = 7 + scale * torch.randn(2, 200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = transform_scores(raw, "standardize")
    assert found.mean(dim=1).abs().max() <= 1e-6
    assert (found.std(dim=1, unbiased=False) - 1).abs().max() <= 2e-3


def test_a_single_token_and_equal_tokens_have_a_finite_score() -> None:
    for raw in (torch.tensor([[3.0]]), torch.full((2, 5), 3.0)):
        assert transform_scores(raw, "standardize").abs().max() == 0


def test_log_sigmoid_and_none_are_what_they_say() -> None:
    raw = torch.tensor([[-2.0, 0.0, 3.0]], dtype=torch.float64)
    expected = [[-math.log1p(math.exp(-v)) for v in (-2.0, 0.0, 3.0)]]
    assert (transform_scores(raw, "log_sigmoid") - torch.tensor(expected)).abs().max() <= 1e-7
    assert torch.equal(transform_scores(raw, "none"), raw)


def test_half_precision_scores_are_widened_before_any_arithmetic() -> None:
    raw = torch.tensor([[100.0, 101.0, 102.0]], dtype=torch.bfloat16)
    assert transform_scores(raw, "standardize").dtype == torch.float32


def test_patch_embedding_is_one_dot_product_per_cube() -> None:
    torch.manual_seed(4)
    embed = PatchEmbed(2, 5, (2, 4, 2)).double()
    image = torch.randn(1, 2, 4, 8, 6, dtype=torch.float64)
    rows = []
    for i in range(2):
        for j in range(2):
            for k in range(3):
                cube = image[0, :, 2 * i : 2 * i + 2, 4 * j : 4 * j + 4, 2 * k : 2 * k + 2]
                rows.append((embed.proj.weight * cube).sum(dim=(1, 2, 3, 4)) + embed.proj.bias)
    assert (embed(image)[0] - torch.stack(rows)).abs().max() <= 1e-12
