"""Settings, their refusals, and the token counts of the named models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparseg.errors import ConfigError
from sparseg.models.build import build_segmenter
from sparseg.models.config import SegmenterConfig
from sparseg.models.decoder import level_strides
from sparseg.models.presets import PRESETS, preset

COUNTS = {
    "test_tiny": [64, 32, 16, 8],
    "vit_tiny_p8": [1728, 432, 108, 27],
    "vit_small_p8": [1728, 432, 108, 27],
    "vit_base_p8": [1728, 432, 108, 27],
    "vit_base_p16": [216],
    "fast_tiny_p8": [1728, 259],
    "fast_small_p8": [1728, 259],
    "fast_base_p8": [1728, 259],
    "primus_s_p8": [1728, 432, 108, 27],
    "btcv": [1728, 172, 17, 1],
    "brats": [4096, 1024, 256, 64],
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_with_the_stated_token_counts(name: str) -> None:
    with torch.device("meta"):
        net = build_segmenter(name)
        logits = net.eval()(torch.empty(1, net.config.in_channels, *net.config.roi_size))
    if name in COUNTS:
        assert net.token_counts() == COUNTS[name]
    assert logits.shape == (1, net.config.num_classes, *net.config.roi_size)


def test_counts_follow_the_window() -> None:
    net = build_segmenter("test_tiny", keep_ratio=0.29)
    assert net.token_counts((20, 20, 16)) == [100, 29, 8, 2]
    assert net.token_counts((4, 4, 4)) == [1, 1, 1, 1]


def test_a_preset_is_a_copy() -> None:
    preset("test_tiny")["depth"] = 99
    assert PRESETS["test_tiny"]["depth"] == 4


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"^preset: a preset must be one of test_tiny, .*received 'vit_huge'"
    ):
        build_segmenter("vit_huge")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"keep_ratio": 0}, "keep_ratio: a keep ratio must be above 0 and at most 1.*received 0"),
        ({"keep_ratio": 1.5}, "keep_ratio: a keep ratio must be above 0 and at most 1.*received 1.5"),
        ({"keep_ratio": (0.5, -0.1, 0.5)}, "keep_ratio: a keep ratio must be above 0"),
        ({"keep_ratio": (0.5, 0.5)}, r"keep_ratio must have one entry per pruning stage \(3\), got 2"),
        ({"num_keep": (0, 1, 1)}, "num_keep must be at least 1 at every stage"),
        ({"num_keep": (8, 8)}, r"num_keep must have one entry per pruning stage \(3\), got 2"),
        ({"keep_ration": 0.5}, "keep_ration: unknown configuration key"),
        ({"roi_size": 18}, r"every window edge must be a multiple of the patch edge.*\(18, 18, 18\)"),
        ({"roi_size": (16, 16)}, "one or three positive integers"),
        ({"patch_size": 6}, "patch edges must be 1, 2, 4, 8 or 16 voxels"),
        ({"patch_size": 1}, "not all 1"),
        ({"patch_size": "8"}, "one or three positive integers"),
        ({"num_heads": 5}, "the width 24 must be a multiple of the number of heads 5"),
        ({"assembly_num_heads": 7}, "the width 24 must be a multiple of the number of heads 7"),
        ({"embed_dim": 26}, "embed_dim must be a multiple of 4 where tokens are scored, got 26"),
        ({"in_channels": 0}, "in_channels: .*greater than or equal to 1; received 0"),
        ({"num_classes": -2}, "num_classes: .*received -2"),
        ({"pruning_stages": (3, 2, 1)}, r"ascending block numbers in 0\.\.3, got \(3, 2, 1\)"),
        ({"pruning_stages": (1, 2, 4)}, r"ascending block numbers in 0\.\.3"),
        ({"pruning_stages": (1, 1, 2)}, r"ascending block numbers in 0\.\.3"),
        ({"drop_path": 1.0}, "drop_path: .*less than 1"),
        ({"temperature": 0.0}, "temperature: .*greater than 0"),
        ({"score_transform": "sigmoid"}, "score_transform: .*'standardize'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"^SparseUNETR: .*{rule}") as caught:
        build_segmenter("test_tiny", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"num_keep": (65, 2, 1)}, "num_keep: stage 0 can keep at most the 64 tokens.*received 65"),
        ({"class_token": False}, "received 64 > 2 > 0 > 0 tokens with keep ratio 0.04"),
        ({"completion": "nearest"}, "a token must be left after every pruning stage"),
        ({"block": "eva", "num_heads": 4}, "a token must be left after every pruning stage"),
    ],
)
def test_stages_that_cannot_run_are_refused_at_once(options: dict[str, Any], rule: str) -> None:
    """Training prepared all cases before torch's own error about no elements came."""
    published = {"keep_ratio": 0.04, "count_rule": "published"}
    assert build_segmenter("test_tiny", **published).token_counts() == [64, 2, 0, 0]
    with pytest.raises(ConfigError, match=rule):
        build_segmenter("test_tiny", **{**published, **options})


@pytest.mark.parametrize("options", [{"pruning_stages": 2}, {"pruning_stages": None}, {"keep_ratio": None}])
def test_wrong_types_are_refused_as_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"SparseUNETR: {next(iter(options))}"):
        build_segmenter("test_tiny", **options)


def test_wrong_settings_are_value_errors_too() -> None:
    with pytest.raises(ValueError, match="keep ratio"):
        build_segmenter("test_tiny", keep_ratio=0.0)


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((16, 16, 16), [(2, 2, 2)] * 4),
        ((8, 8, 8), [(2, 2, 2)] * 4),
        ((8, 8, 4), [(2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((16, 16, 2), [(2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)]),
        ((4, 4, 1), [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((4, 2, 1), [(2, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),
    ],
)
def test_level_strides(patch: tuple[int, int, int], strides: list[tuple[int, int, int]]) -> None:
    assert level_strides(patch) == strides
    level = max(patch).bit_length() - 1
    for axis in range(3):
        product = 1
        for step in strides[:level]:
            product *= step[axis]
        assert product == patch[axis]


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (3, 6, 9)), (24, (6, 12, 18)), (4, (1, 2, 3)), (2, (0, 1, 1)), (1, (0, 0, 0))]
)
def test_skip_blocks(depth: int, blocks: tuple[int, int, int]) -> None:
    config = SegmenterConfig(depth=depth, pruning_stages=(), keep_ratio=0.5)
    assert config.skip_blocks == blocks
