"""MONAI's UNETR both ways, and the encoders of its ViT, ViTAutoEnc and MaskedAutoEncoderViT (monai 1.6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn

from sparseg.checkpoints.adapters_common import (
    count_blocks,
    load_exactly,
    read_foreign_state,
    rename,
    shape_of,
    unwrap,
)
from sparseg.checkpoints.adapters_encoder import AdapterReport, load_encoder
from sparseg.checkpoints.key_tables import (
    MONAI_DROPPED,
    MONAI_ENCODER,
    MONAI_UNETR,
    MONAI_UNUSED,
    reverse,
    translate,
)
from sparseg.errors import CheckpointError
from sparseg.models.segmenter import SparseUNETR
from sparseg.shapes import Triple, as_triple, num_tokens, token_grid

if TYPE_CHECKING:  # importing it for real loads every network of MONAI
    from monai.networks.nets.unetr import UNETR

_WHERE = "monai UNETR"
_PATCH = 16
_DEPTH = 12
_NORM_EPS = 1e-5
_POSITION = "vit.patch_embedding.position_embeddings"


def from_monai_unetr(net: UNETR) -> SparseUNETR:
    """Convert MONAI's `UNETR` (3-D, residual blocks, plain instance norm); the logits stay the same.

    Settings are read from the module. Dropout is not carried over: compare in evaluation mode.

    Args:
        net: A `monai.networks.nets.UNETR`; its weights are copied.

    Returns:
        A network without class token and without pruning stages, in evaluation mode.

    Raises:
        CheckpointError: no UNETR, or one with options that this network does not have.
    """
    _check_unetr(net)
    return _convert(
        dict(net.state_dict()),
        as_triple([_PATCH * int(edge) for edge in net.feat_size], name="roi_size"),
        num_heads=net.vit.blocks[0].attn.num_heads,
        norm_eps=net.vit.norm.eps,
    )


def read_monai_unetr(
    path: Path, *, roi_size: Triple | None = None, num_heads: int | None = None
) -> SparseUNETR:
    """Read the weights of MONAI's `UNETR` from a file; see `from_monai_unetr`.

    Args:
        path: File with a `state_dict`; no code from it is run.
        roi_size: Its window in voxels; None takes a cube.
        num_heads: Its attention heads, which the weights do not show; None takes 64 channels each.

    Raises:
        CheckpointError: not readable, no UNETR, or sizes that do not fit.
    """
    state = read_foreign_state(path)
    if _POSITION not in state:
        raise CheckpointError(
            "the file must hold the weights of MONAI's UNETR",
            received=f"names such as {', '.join(list(state)[:3])}",
            remedy="save its state_dict() with torch.save",
            where=path,
            code="sparsify-source",
        )
    _, length, width = shape_of(state, _POSITION, 3, where=str(path))
    roi_size = roi_size or as_triple(_PATCH * round(length ** (1 / 3)), name="roi_size")
    num_heads = num_heads or max(width // 64, 1)
    if num_tokens(token_grid(roi_size, as_triple(_PATCH, name="patch_size"))) != length or width % num_heads:
        raise CheckpointError(
            f"window and heads must fit its {length} tokens of patch {_PATCH} and its width {width}",
            received=f"window {'x'.join(map(str, roi_size))}, {num_heads} heads",
            remedy="give those it was built with: --set model.roi_size=[...] --set model.num_heads=...",
            where=path,
            code="sparsify-source",
        )
    return _convert(state, roi_size, num_heads=num_heads, norm_eps=_NORM_EPS)


def _convert(state: dict[str, Tensor], roi_size: Triple, *, num_heads: int, norm_eps: float) -> SparseUNETR:
    state = _as_convolution(state, "vit.", as_triple(_PATCH, name="patch_size"))
    width, channels, *_ = shape_of(state, "vit.patch_embedding.patch_embeddings.weight", 5, where=_WHERE)
    hidden, _ = shape_of(state, "vit.blocks.0.mlp.linear1.weight", 2, where=_WHERE)
    converted = SparseUNETR(
        in_channels=channels,
        num_classes=shape_of(state, "out.conv.conv.weight", 5, where=_WHERE)[0],
        roi_size=roi_size,
        patch_size=_PATCH,
        embed_dim=width,
        depth=count_blocks(state, "vit.blocks."),
        num_heads=num_heads,
        feature_size=shape_of(state, "encoder1.layer.conv1.conv.weight", 5, where=_WHERE)[0],
        pruning_stages=(),
        mlp_ratio=hidden / width,
        qkv_bias="vit.blocks.0.attn.qkv.bias" in state,
        class_token=False,
        norm_eps=norm_eps,
        skips="per_depth",
    )
    load_exactly(converted, rename(state, MONAI_UNETR, MONAI_UNUSED), MONAI_UNETR, where=_WHERE)
    return converted.eval()


def to_monai_unetr_state_dict(net: SparseUNETR) -> dict[str, Tensor]:
    """Return the weights of a dense patch-16 network under MONAI's `UNETR` names (`proj_type="conv"`).

    MONAI's blocks hold a `norm_cross_attn` that no output depends on; it is written as MONAI initialises it.

    Raises:
        CheckpointError: the network has parts that MONAI's UNETR lacks.
    """
    config = net.config
    rules = {
        "no pruning stages": not config.pruning_stages,
        "no class token": not config.class_token,
        "per-depth skips": config.skips == "per_depth",
        f"patch size {_PATCH}": config.patch_size == (_PATCH,) * 3,
        f"depth {_DEPTH}": config.depth == _DEPTH,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise CheckpointError(
            f"MONAI's UNETR needs {', '.join(broken)}",
            received=config,
            where=_WHERE,
            remedy="convert a model with these settings",
        )
    table = reverse(MONAI_UNETR)
    state = {}
    for key, value in net.state_dict().items():
        foreign = translate(key, table)
        assert foreign is not None, key  # the rules above leave only parts that the table names
        state[foreign] = value.detach().clone()
    norm = state["vit.norm.weight"]
    for block in range(config.depth):
        state[f"vit.blocks.{block}.norm_cross_attn.weight"] = torch.ones_like(norm)
        state[f"vit.blocks.{block}.norm_cross_attn.bias"] = torch.zeros_like(norm)
    return state


def load_monai_encoder(
    net: SparseUNETR, state_dict: Mapping[str, object], *, source_grid: Triple | None = None
) -> AdapterReport:
    """Fill the encoder of `net`, in place, from MONAI's ViT, ViTAutoEnc or MaskedAutoEncoderViT.

    MONAI's norms have eps 1e-5; build `net` with `norm_eps=1e-5` to compute the same function. Where MONAI
    has no class token or no attention bias, the network's class token stays as it was and its biases become
    zero.

    Args:
        net: Network whose encoder has the width and depth of the checkpoint.
        state_dict: Contents of the file or its inner `state_dict`, with or without a leading `module.`.
        source_grid: Token grid of the checkpoint where it is neither the network's nor a cube.

    Returns:
        What was matched, resized, dropped and left as it was.

    Raises:
        CheckpointError: a name is unknown or missing, width or depth differ, or the grid cannot be told.
    """
    state = _last_norm_by_name(unwrap(state_dict))
    state = _as_convolution(state, "", net.config.patch_size)
    return load_encoder(
        net,
        rename(state, MONAI_ENCODER, MONAI_DROPPED),
        source_grid=source_grid,
        where="monai encoder",
        may_lack_class_token=True,
        may_lack_qkv_bias=True,
    )


def _check_unetr(net: UNETR) -> None:
    """Refuse options that change the function without changing a name."""
    if not hasattr(net, "vit") or not hasattr(net, "feat_size") or len(net.feat_size) != 3:
        raise CheckpointError(
            "the module must be MONAI's UNETR in 3-D",
            received=type(net).__name__,
            where=_WHERE,
            remedy="pass a monai.networks.nets.UNETR",
        )
    blocks = [part for part in net.modules() if isinstance(part, UnetResBlock)]
    norms = [norm for block in blocks for name, norm in block.named_children() if name.startswith("norm")]
    plain = all(
        isinstance(norm, nn.InstanceNorm3d) and norm.eps == 1e-5 and not norm.track_running_stats
        for norm in norms
    )
    if not plain or any(isinstance(part, UnetBasicBlock) for part in net.modules()):
        raise CheckpointError(
            'the UNETR must be built with norm_name="instance", conv_block=True and res_block=True',
            received=norms[0] if norms else "no residual blocks",
            where=_WHERE,
            remedy="convert a model built so",
        )


def _as_convolution(state: dict[str, Tensor], prefix: str, patch: Triple) -> dict[str, Tensor]:
    """Turn `proj_type="perceptron"` (Linear over patches, channels last) into the equal convolution."""
    name = f"{prefix}patch_embedding.patch_embeddings"
    if f"{name}.1.weight" not in state:
        return state
    rest = dict(state)
    weight = rest.pop(f"{name}.1.weight")
    cubes = weight.reshape(weight.shape[0], *patch, -1).permute(0, 4, 1, 2, 3)
    rest[f"{name}.weight"] = cubes.contiguous()
    rest[f"{name}.bias"] = rest.pop(f"{name}.1.bias")
    return rest


def _last_norm_by_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename `blocks.<depth>`, the last norm of MaskedAutoEncoderViT, to `norm` as in the other encoders."""
    depth = sum(key.startswith("blocks.") and key.endswith(".attn.qkv.weight") for key in state)
    last = f"blocks.{depth}."
    return {
        f"norm.{key.removeprefix(last)}" if key in (f"{last}weight", f"{last}bias") else key: value
        for key, value in state.items()
    }
