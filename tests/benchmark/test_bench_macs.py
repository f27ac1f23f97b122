"""MACs against a count by hand, attention included."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparseg.benchmark.macs import count_macs
from sparseg.benchmark.variants import bench_config, build_variant

E = 24  # width of test_tiny: 4 blocks, MLP ratio 4, 64 tokens, stages before blocks 1, 2, 3


def block_macs(n: int) -> int:
    """One transformer block over n tokens: qkv and projection, q kᵀ and weights v, two MLP layers."""
    return 4 * n * E * E + 2 * n * n * E + 8 * n * E * E


def predictor_macs(n: int) -> int:
    return n * (E * E + E * E // 2 + E // 2 * E // 4 + E // 4)


def residual_macs(voxels: int, incoming: int, out: int) -> int:
    """Two 3³ convolutions, and a 1³ one where the width changes."""
    return voxels * (27 * incoming * out + 27 * out * out + (incoming * out if incoming != out else 0))


def up_macs(voxels: int, incoming: int, out: int) -> int:
    """Transposed convolution with kernel and stride 2, over its *input* voxels."""
    return voxels * 8 * incoming * out


def decoder_macs() -> int:
    """UNETR at roi 16³, patch 4: levels of 16³, 8³, 4³ (grid), 2³ and 1³ voxels, widths 4, 8, 16, 32, E."""
    skips = residual_macs(16**3, 1, 4) + up_macs(4**3, E, 8)
    skips += residual_macs(4**3, E, 16) + residual_macs(2**3, E, 32)
    climb = 0
    for edge, incoming, out in ((1, E, 32), (2, 32, 16), (4, 16, 8), (8, 8, 4)):
        climb += up_macs(edge**3, incoming, out) + residual_macs((2 * edge) ** 3, 2 * out, out)
    return skips + climb + 16**3 * 4 * 3


def test_count_equals_the_count_by_hand() -> None:
    total, parts = count_macs("sparse", bench_config("test_tiny"))
    # The class token is in every block, one more than the patch tokens.
    blocks = sum(block_macs(n + 1) for n in (64, 32, 16, 8))
    scores = sum(predictor_macs(n) for n in (64, 32, 16))
    assert parts["encoder"] == 64 * 4**3 * E + blocks + scores
    # Projections of the four groups, class token with the survivors; one block; the last linear layer.
    assert parts["assembly"] == 65 * E * E + block_macs(65) + 64 * E * E
    assert parts["decoder"] == decoder_macs()
    assert total == sum(parts.values())


def test_counts_grow_with_the_batch() -> None:
    config = bench_config("test_tiny")
    assert count_macs("sparse", config, batch=3)[0] == 3 * count_macs("sparse", config)[0]


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_naive_model_multiplies_the_same_matrices(mode: str) -> None:
    """On real tensors, where boolean masks have a size; explicit attention is seen on the CPU."""
    config = bench_config("test_tiny")
    net = build_variant("naive_sparse", config).net.train(mode == "training")
    with FlopCounterMode(display=False) as counter:
        logits = net(torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)))
        if mode == "training":
            logits.mean().backward()
    assert counter.get_total_flops() // 2 == count_macs("naive_sparse", config, mode=mode)[0]


def test_training_counts_about_three_forward_passes() -> None:
    config = bench_config("test_tiny")
    forward, parts = count_macs("sparse", config)
    both, training_parts = count_macs("sparse", config, mode="training")
    assert training_parts == parts
    # The image needs no gradient, which saves the input gradient of the two layers that read it.
    saved = 64 * 4**3 * E + 16**3 * (27 * 4 + 4)
    assert both == 3 * forward - saved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "name", "gmacs"),
    [
        ("btcv", "sparse", 132),
        ("btcv", "dense_p8", 258),
        ("brats", "sparse", 405),
        ("brats", "dense_p8", 798),
    ],
)
def test_the_papers_settings_cost_what_they_cost(preset: str, name: str, gmacs: int) -> None:
    """Counted independently before this package was written, attention included."""
    total, _ = count_macs(name, bench_config(preset))
    assert total / 1e9 == pytest.approx(gmacs, rel=0.02)
