"""Initial weights by seed and name: what two models share starts alike."""

from __future__ import annotations

import pytest
import torch

from sparseg.models.baselines import baseline_options
from sparseg.models.build import build_segmenter
from sparseg.models.initial import draw_by_name
from sparseg.models.segmenter import SparseUNETR

RIVALS = ("sparse", "random", "dense_p8", "mask_token", "evit_mask", "tome", "last_layer")


def drawn(name: str, seed: int) -> SparseUNETR:
    net = build_segmenter("test_tiny", **{**baseline_options(name)["model"], "patch_size": 4})
    draw_by_name(net, seed)
    return net


def test_parts_of_one_name_and_shape_are_equal_in_all_models_of_a_seed() -> None:
    torch.manual_seed(0)
    first = dict(drawn("sparse", 3).named_parameters())
    for name in RIVALS[1:]:
        other = dict(drawn(name, 3).named_parameters())
        shared = [key for key in other if key in first and other[key].shape == first[key].shape]
        assert {"decoder.out.conv.conv.weight", "encoder.blocks.3.attn.qkv.weight"} <= set(shared)
        assert all(torch.equal(first[key], other[key]) for key in shared), name


def test_another_seed_changes_all_that_is_random_and_the_global_generator_stays() -> None:
    torch.manual_seed(5)
    built = [dict(drawn("mask_token", seed).named_parameters()) for seed in (3, 4)]
    found = torch.randn(1)
    torch.manual_seed(5)
    for _ in range(2):
        build_segmenter("test_tiny", **{**baseline_options("mask_token")["model"], "patch_size": 4})
    assert torch.equal(found, torch.randn(1))
    same = {key for key, value in built[0].items() if torch.equal(value, built[1][key])}
    # Not random: zero biases, norms at one, the table of positions.
    assert {key for key in same if not key.endswith("pos_embed")} == {
        key for key, value in built[0].items() if bool((value == value.flatten()[0]).all())
    }


@pytest.mark.parametrize("name", ["sparse", "mask_token"])
def test_the_distributions_are_those_of_building(name: str) -> None:
    torch.manual_seed(1)
    options = {**baseline_options(name)["model"], "patch_size": 4, "embed_dim": 96}
    net = build_segmenter("test_tiny", **options)
    weights = {key: value.detach() for key, value in net.named_parameters() if value.numel() > 90}
    before = {key: (float(value.mean()), float(value.std())) for key, value in weights.items()}
    draw_by_name(net, 0)
    for key, (mean, std) in before.items():
        value = weights[key]  # drawn anew in place
        # Standard errors: std / sqrt(n) of the mean, about std / sqrt(2n) of the standard deviation.
        error = max(std, 1e-9) / value.numel() ** 0.5
        assert abs(float(value.mean()) - mean) < 8 * error, key
        assert abs(float(value.std()) - std) < 6 * error, key
