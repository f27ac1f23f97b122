"""Which models are measured, and that MONAI's runs with fused attention."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from monai.networks.nets import UNETR
from torch.nn import functional as F

from sparseg.benchmark.variants import (
    VARIANTS,
    bench_config,
    build_variant,
    choose_variants,
    fuse_attention,
)
from sparseg.errors import ConfigError
from sparseg.models.config import SegmenterConfig


def count_fused_calls(net: torch.nn.Module, image: torch.Tensor) -> tuple[int, torch.Tensor]:
    with (
        torch.inference_mode(),
        mock.patch.object(
            F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention
        ) as attention,
    ):
        logits = net(image)
    return attention.call_count, logits


def test_switching_to_fused_attention_leaves_monais_logits_as_they_are() -> None:
    torch.manual_seed(0)
    net = UNETR(1, 2, (32, 32, 32), feature_size=2, hidden_size=24, mlp_dim=48, num_heads=2).eval()
    image = torch.randn(1, 1, 32, 32, 32)
    calls, explicit = count_fused_calls(net, image)
    assert calls == 0
    assert fuse_attention(net) == 12
    calls, fused = count_fused_calls(net, image)
    assert calls == 12
    assert (fused - explicit).abs().max() <= 1e-5 * explicit.abs().max()


def test_the_measured_monai_model_has_our_sizes_and_fused_attention() -> None:
    config = SegmenterConfig(
        roi_size=(32, 32, 16), embed_dim=24, num_heads=2, feature_size=2, mlp_ratio=3.0, num_classes=5
    )
    variant = build_variant("dense_p16_monai", config)
    calls, logits = count_fused_calls(variant.net.eval(), torch.zeros(1, 1, 32, 32, 16))
    assert calls == 12
    assert logits.shape == (1, 5, 32, 32, 16)
    assert variant.token_counts == [4]
    shapes = {name: tuple(p.shape) for name, p in variant.net.named_parameters()}
    assert shapes["vit.blocks.11.attn.qkv.bias"] == (72,)
    assert shapes["vit.blocks.0.mlp.linear1.weight"] == (72, 24)
    assert shapes["out.conv.conv.weight"] == (5, 2, 1, 1, 1)


def test_dense_patch8_prunes_nothing_and_has_skips_of_its_own() -> None:
    config = bench_config("btcv").model_copy(
        update={"roi_size": (32, 32, 32), "embed_dim": 24, "num_heads": 2, "feature_size": 2}
    )
    variant = build_variant("dense_p8", config)
    net = variant.net
    assert variant.token_counts == [64]
    assert variant.keep_ratios == ()
    assert net.assembler is None
    assert net.config.skips == "per_depth"
    assert net.config.patch_size == (8, 8, 8)
    assert len(net.encoder(torch.zeros(1, 1, 32, 32, 32)).skips) == 3


def test_all_variants_of_the_paper_settings_are_measured() -> None:
    for preset in ("btcv", "brats"):
        chosen, left_out = choose_variants(bench_config(preset))
        assert chosen == list(VARIANTS)
        assert left_out == {}


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({"depth": 4}, "dense_p16_monai", "has depth 12, the preset 4"),
        ({"roi_size": (96, 96, 24)}, "dense_p16_monai", "roi 96x96x24 is not a multiple of patch 16"),
        ({"roi_size": (96, 96, 20)}, "dense_p8", "roi 96x96x20 is not a multiple of patch 8"),
        ({"class_token": False}, "naive_sparse", "has a class token"),
    ],
)
def test_what_does_not_fit_is_left_out_with_a_reason(
    changes: dict[str, object], name: str, reason: str
) -> None:
    config = bench_config("btcv").model_copy(update=changes)
    chosen, left_out = choose_variants(config)
    assert name not in chosen
    assert reason in left_out[name]


def test_variants_are_measured_in_one_order_and_the_others_noted() -> None:
    chosen, left_out = choose_variants(bench_config("btcv"), ["naive_sparse", "sparse"])
    assert chosen == ["sparse", "naive_sparse"]
    assert left_out == {"dense_p8": "not asked for", "dense_p16_monai": "not asked for"}


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="received swin"):
        choose_variants(bench_config("btcv"), ["sparse", "swin"])
    with pytest.raises(ConfigError, match="at least one variant"):
        choose_variants(bench_config("test_tiny"), ["dense_p16_monai"])
    with pytest.raises(ConfigError, match="prunes no tokens"):
        bench_config("vit_base_p16")
    with pytest.raises(ConfigError, match="a preset must be one of"):
        bench_config("btcv2")


def test_baselines_are_those_of_the_preset_and_fit_it() -> None:
    config = bench_config("test_tiny")
    chosen, left_out = choose_variants(config, ["baselines"])
    assert {"random", "evit", "dynamicvit_mask", "mask_token", "tome"} <= set(chosen)
    assert "sparse" not in chosen
    assert left_out["sparse"] == "not asked for"
    random = build_variant("random", config)
    assert random.net.config.scoring == "random"
    assert random.token_counts == build_variant("sparse", config).token_counts
    assert build_variant("mask_token", config).net.config.completion == "mask_token"
    assert not build_variant("tome", config).net.config.pruning_stages


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_what_is_compiled_is_a_row_of_its_own_and_computes_the_same() -> None:
    config = bench_config("test_tiny")
    chosen, left_out = choose_variants(config, ["sparse", "naive_sparse"], ["blocks", "none"])
    assert chosen == ["sparse", "sparse+blocks", "naive_sparse"]
    assert "plain ViT" in left_out["naive_sparse+blocks"]
    with pytest.raises(ConfigError, match=r"none, blocks, all; received decoder"):
        choose_variants(config, ["sparse"], ["decoder"])
    plain, compiled = (build_variant(name, config) for name in chosen[:2])
    assert compiled.name == "sparse+blocks"
    assert all(block._compiled_call_impl is not None for block in compiled.net.blocks())
    assert all(block._compiled_call_impl is None for block in plain.net.blocks())
    for one, other in zip(plain.net.parameters(), compiled.net.parameters(), strict=True):
        assert torch.equal(one, other)
    whole = build_variant("dense_p8+all", config)
    assert whole.net._compiled_call_impl is not None
