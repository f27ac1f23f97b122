"""How parameters are called in foreign checkpoints and here: tables of name patterns, readable both ways.

`#` stands for a block or stage number, `*` for the rest of a name; the n-th wildcard of one side is the n-th
of the other. The first pair that fits wins. Facts about the foreign side: the published code of Zhou et al.
(IPMI 2023), of SelfMedMAE, and MONAI 1.6.
"""

from __future__ import annotations

import re
from functools import lru_cache

KeyTable = tuple[tuple[str, str], ...]

_DECODER: KeyTable = (
    ("encoder1.layer.*", "decoder.encoder1.*"),
    ("encoder2.transp_conv_init.conv.*", "decoder.skip_paths.0.init.conv.*"),
    ("encoder2.blocks.#.*", "decoder.skip_paths.0.blocks.#.*"),
    ("encoder3.transp_conv_init.conv.*", "decoder.skip_paths.1.init.conv.*"),
    ("encoder3.blocks.#.*", "decoder.skip_paths.1.blocks.#.*"),
    ("encoder4.transp_conv_init.conv.*", "decoder.skip_paths.2.init.conv.*"),
    # Patch 8: the third skip passes one residual block (conv1, conv2, conv3) at grid resolution.
    ("encoder4.layer.conv#.*", "decoder.skip_paths.2.init.conv#.*"),
    ("decoder5.*", "decoder.up_blocks.0.*"),
    ("decoder4.*", "decoder.up_blocks.1.*"),
    ("decoder3.*", "decoder.up_blocks.2.*"),
    ("decoder2.*", "decoder.up_blocks.3.*"),
    ("out.conv.conv.*", "decoder.out.conv.conv.*"),
)

_PUBLISHED_ENCODER: KeyTable = (
    ("encoder.cls_token", "encoder.cls_token"),
    ("encoder.patch_embed.proj.*", "encoder.patch_embed.proj.*"),
    ("encoder.blocks.#.*", "encoder.blocks.#.*"),
    ("encoder.norm.*", "encoder.norm.*"),
)

_MONAI_VIT: KeyTable = (
    ("cls_token", "encoder.cls_token"),
    ("patch_embedding.position_embeddings", "encoder.pos_embed"),
    ("patch_embedding.patch_embeddings.*", "encoder.patch_embed.proj.*"),
    ("blocks.#.mlp.linear1.*", "encoder.blocks.#.mlp.fc1.*"),
    ("blocks.#.mlp.linear2.*", "encoder.blocks.#.mlp.fc2.*"),
    ("blocks.#.attn.qkv.*", "encoder.blocks.#.attn.qkv.*"),
    ("blocks.#.attn.out_proj.*", "encoder.blocks.#.attn.proj.*"),
    ("blocks.#.norm1.*", "encoder.blocks.#.norm1.*"),
    ("blocks.#.norm2.*", "encoder.blocks.#.norm2.*"),
    ("norm.*", "encoder.norm.*"),
)


def prefixed(table: KeyTable, prefix: str) -> KeyTable:
    """Return `table` with `prefix` in front of every foreign name."""
    return tuple((prefix + foreign, ours) for foreign, ours in table)


def reverse(table: KeyTable) -> KeyTable:
    """Return `table` read from right to left."""
    return tuple((ours, foreign) for foreign, ours in table)


PUBLISHED: KeyTable = (
    ("encoder.pos_embed", "encoder.pos_embed"),
    *_PUBLISHED_ENCODER,
    ("encoder.score_predictor_list.#.*", "encoder.prunings.#.predictor.*"),
    ("encoder.mid_norm_list.#.*", "assembler.pruned_norms.#.*"),
    ("completion_net.pre_linear_list.#.*", "assembler.projections.#.*"),
    ("completion_net.completion.layer_tokens.#", "assembler.stage_embeddings.#"),
    ("completion_net.blocks.#.*", "assembler.blocks.#.*"),
    ("completion_net.out_norm.*", "assembler.out_norm.*"),
    ("completion_net.out_linear.*", "assembler.out_linear.*"),
    *prefixed(_DECODER, "decoder."),
)
"""The published sparse and dense models, without the fixed tables `encoder.policy`.

`completion.pos_embed`.
"""

SELFMEDMAE: KeyTable = (("encoder_pos_embed", "encoder.pos_embed"), *_PUBLISHED_ENCODER)
"""The encoder of SelfMedMAE's pre-training."""

SELFMEDMAE_DROPPED: KeyTable = (
    ("decoder.*", "pre-training decoder"),
    ("decoder_pos_embed", "pre-training decoder"),
    ("mask_token", "pre-training mask token"),
    ("encoder_to_decoder.*", "pre-training projection to the decoder"),
)
"""What pre-training leaves behind, with the reason it is not used."""

MONAI_UNETR: KeyTable = (*prefixed(_MONAI_VIT, "vit."), *_DECODER)
"""MONAI's `UNETR`."""

MONAI_ENCODER: KeyTable = _MONAI_VIT
"""MONAI's `ViT` and `ViTAutoEnc`, and `MaskedAutoEncoderViT` once its last norm is renamed."""

MONAI_DROPPED: KeyTable = (
    ("blocks.#.norm_cross_attn.*", "norm of a cross-attention that is not there"),
    ("blocks.#.cross_attn.*", "cross-attention of older MONAI versions, never used"),
    ("classification_head.*", "classification head"),
    ("conv3d_transpose.*", "auto-encoder head"),
    ("conv3d_transpose_1.*", "auto-encoder head"),
    ("decoder_embed.*", "pre-training decoder"),
    ("decoder_blocks.*", "pre-training decoder"),
    ("decoder_pred.*", "pre-training decoder"),
    ("decoder_pos_embedding", "pre-training decoder"),
    ("mask_tokens", "pre-training mask token"),
)
"""What MONAI's encoders carry besides the encoder, with the reason it is not used."""

MONAI_UNUSED: KeyTable = (("vit.blocks.#.norm_cross_attn.*", "norm of a cross-attention that is not there"),)
"""Parameters of MONAI's `UNETR` that no output depends on."""


def translate(key: str, table: KeyTable) -> str | None:
    """Return what `key` is called on the right side of `table`, or None where no pair fits."""
    for source, target in table:
        match = _pattern(source).fullmatch(key)
        if match:
            pieces = re.split(r"[#*]", target)
            return pieces[0] + "".join(a + b for a, b in zip(match.groups(), pieces[1:], strict=True))
    return None


def reason(key: str, dropped: KeyTable) -> str | None:
    """Return why `key` is left out, or None where it is not to be left out."""
    return next((text for source, text in dropped if _pattern(source).fullmatch(key)), None)


@lru_cache(maxsize=256)
def _pattern(source: str) -> re.Pattern[str]:
    return re.compile(re.escape(source).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))
