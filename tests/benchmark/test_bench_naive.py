"""The plain implementation is the same function as the model it is measured against."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.benchmark.naive import MaskedGroup, NaiveSparse, plain_attention, restore_tokens
from sparseg.benchmark.timing import TrainingTimer
from sparseg.benchmark.variants import bench_config, build_variant
from sparseg.errors import ConfigError
from sparseg.layers.attention import Attention
from sparseg.models.build import build_segmenter
from sparseg.models.config import PUBLISHED_OPTIONS
from sparseg.training.losses import make_loss


def image(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, PUBLISHED_OPTIONS, {"assembly_dim": 36, "keep_ratio": 0.25}])
def test_naive_logits_equal_those_of_the_sparse_model(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", **options).eval()
    naive = NaiveSparse(net).eval()
    assert {id(p) for p in naive.parameters()} == {id(p) for p in net.parameters()}
    with torch.inference_mode():
        expected, found = net(image(0)), naive(image(0))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_rows_of_one_seed_share_their_weights() -> None:
    config = bench_config("test_tiny")
    sparse, naive = build_variant("sparse", config, seed=3), build_variant("naive_sparse", config, seed=3)
    with torch.inference_mode():
        expected, found = sparse.net.eval()(image(1)), naive.net.eval()(image(1))
        other = build_variant("sparse", config, seed=4).net.eval()(image(1))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not torch.allclose(other, expected, rtol=1e-2)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_variant("sparse", bench_config("test_tiny"))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_forward_and_decoder_gradients_equal_the_sparse_model() -> None:
    """Straight-through masks have value 1, so only gradients that pass through a score may differ."""
    torch.manual_seed(1)
    net = build_segmenter("test_tiny").train()
    naive = NaiveSparse(net).train()
    weights = torch.randn(2, 3, 16, 16, 16)
    expected = net(image(2))
    (expected * weights).mean().backward()
    decoder = {name: p.grad.clone() for name, p in net.decoder.named_parameters() if p.grad is not None}
    net.zero_grad()
    found = naive(image(2))
    (found * weights).mean().backward()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    scale = max(grad.abs().max() for grad in decoder.values())
    for name, parameter in net.decoder.named_parameters():
        assert (parameter.grad - decoder[name]).abs().max() <= 1e-5 * scale, name
    # The last bias moves all scores alike, so standardising takes its gradient away, up to rounding.
    trained = {n: p for n, p in net.named_parameters() if not n.endswith("predictor.out_mlp.4.bias")}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []


def test_published_noise_selects_by_chance_only_while_training() -> None:
    torch.manual_seed(2)
    naive = NaiveSparse(build_segmenter("test_tiny", **PUBLISHED_OPTIONS))
    with torch.no_grad():
        first, second = naive.train().encoder(image(3)), naive.encoder(image(3))
        assert not torch.equal(first.groups[0].mask, second.groups[0].mask)
        first, second = naive.eval().encoder(image(3)), naive.encoder(image(3))
    assert torch.equal(first.groups[0].mask, second.groups[0].mask)
    members = torch.stack([group.mask for group in first.groups]).sum(dim=0)
    assert torch.equal(members, torch.ones(2, 65, dtype=torch.int64))
    assert [int(group.mask[0].sum()) for group in first.groups] == [32, 16, 8, 9]


def test_a_training_step_of_the_naive_model_lowers_its_loss() -> None:
    variant = build_variant("naive_sparse", bench_config("test_tiny"), seed=6)
    case = image(4, batch=1)
    timer = TrainingTimer(
        variant, case, (case > 0).long(), make_loss(regions=False), device=torch.device("cpu")
    )
    timer.optimizer.param_groups[0]["lr"] = 1e-3

    def loss() -> float:
        with torch.no_grad():
            return float(timer.loss(variant.net(case), timer.target))

    before = loss()
    for _ in range(3):
        timer.measure()
    assert loss() < before - 0.01
    assert all(parameter.grad is None for parameter in variant.net.parameters())


def test_plain_attention_equals_the_fused_layer() -> None:
    torch.manual_seed(7)
    layer = Attention(24, 4).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    torch.testing.assert_close(plain_attention(layer, x), layer(x))


def test_restoring_writes_every_group_at_its_mask() -> None:
    even = torch.tensor([[True, False, True, False]])
    groups = [
        MaskedGroup(torch.tensor([[[1.0], [2.0]]]), even),
        MaskedGroup(torch.tensor([[[3.0], [4.0]]]), ~even),
    ]
    assert restore_tokens(groups).flatten().tolist() == [1, 3, 2, 4]


def test_a_dense_model_has_no_plain_sparse_form() -> None:
    with pytest.raises(ConfigError, match="pruning stages"):
        NaiveSparse(build_segmenter("test_tiny", pruning_stages=()))
