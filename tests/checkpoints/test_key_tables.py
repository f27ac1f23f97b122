"""Key tables: readable in both directions, and no name falls between two pairs."""

from __future__ import annotations

import pytest

from reference.published_state import make_published_state_dict
from sparseg.checkpoints.key_tables import (
    MONAI_DROPPED,
    MONAI_UNETR,
    PUBLISHED,
    KeyTable,
    reason,
    reverse,
    translate,
)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("encoder.blocks.11.attn.qkv.weight", "encoder.blocks.11.attn.qkv.weight"),
        ("encoder.score_predictor_list.2.out_mlp.4.bias", "encoder.prunings.2.predictor.out_mlp.4.bias"),
        ("encoder.mid_norm_list.0.weight", "assembler.pruned_norms.0.weight"),
        ("completion_net.completion.layer_tokens.3", "assembler.stage_embeddings.3"),
        (
            "decoder.encoder2.blocks.0.1.conv1.conv.weight",
            "decoder.skip_paths.0.blocks.0.1.conv1.conv.weight",
        ),
        ("decoder.encoder4.transp_conv_init.conv.weight", "decoder.skip_paths.2.init.conv.weight"),
        ("decoder.encoder4.layer.conv3.conv.weight", "decoder.skip_paths.2.init.conv3.conv.weight"),
        ("decoder.decoder5.transp_conv.conv.weight", "decoder.up_blocks.0.transp_conv.conv.weight"),
        ("decoder.decoder2.conv_block.conv1.conv.weight", "decoder.up_blocks.3.conv_block.conv1.conv.weight"),
    ],
)
def test_a_name_travels_both_ways(foreign: str, ours: str) -> None:
    assert translate(foreign, PUBLISHED) == ours
    assert translate(ours, reverse(PUBLISHED)) == foreign


@pytest.mark.parametrize(
    "key", ["encoder.policy", "head.weight", "encoder.norm", "xdecoder.out.conv.conv.bias"]
)
def test_a_name_outside_the_table_has_no_translation(key: str) -> None:
    assert translate(key, PUBLISHED) is None


def test_wildcards_do_not_take_a_dot_for_any_character() -> None:
    table: KeyTable = (("a.#.b", "x.#.y"),)
    assert translate("a.7.b", table) == "x.7.y"
    assert translate("a.b.b", table) is None
    assert translate("a-7.b", table) is None


@pytest.mark.parametrize("patch_size", [8, 16])
def test_every_published_name_has_one_name_of_ours(patch_size: int) -> None:
    fixed = {"encoder.policy", "completion_net.completion.pos_embed"}
    state = make_published_state_dict(0, grid=(2, 1, 1), patch_size=patch_size)
    ours = [translate(key, PUBLISHED) for key in state if key not in fixed]
    assert None not in ours
    assert len(set(ours)) == len(ours) == len(state) - 2


def test_dropped_names_carry_their_reason() -> None:
    assert reason("mask_tokens", MONAI_DROPPED) == "pre-training mask token"
    assert reason("blocks.3.norm_cross_attn.weight", MONAI_DROPPED) is not None
    assert reason("blocks.3.norm1.weight", MONAI_DROPPED) is None
    assert translate("vit.blocks.3.norm_cross_attn.weight", MONAI_UNETR) is None
