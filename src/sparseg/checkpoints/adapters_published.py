"""Reading the published models of Zhou et al. (IPMI 2023) and the pre-trained encoders of SelfMedMAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparseg.checkpoints.adapters_common import (
    count_blocks,
    load_exactly,
    refuse,
    rename,
    shape_of,
    unwrap,
)
from sparseg.checkpoints.adapters_encoder import AdapterReport, load_encoder
from sparseg.checkpoints.key_tables import PUBLISHED, SELFMEDMAE, SELFMEDMAE_DROPPED
from sparseg.errors import CheckpointError
from sparseg.layers.position import sine_cosine_position
from sparseg.models.config import PUBLISHED_OPTIONS
from sparseg.models.segmenter import SparseUNETR
from sparseg.shapes import Triple, as_triple, token_grid

_WHERE = "published checkpoint"
_POLICY = "encoder.policy"
_TABLE = "completion_net.completion.pos_embed"
_SKIP_BLOCKS = (3, 6, 9)


def from_published(
    state_dict: Mapping[str, object],
    *,
    roi_size: int | Sequence[int],
    num_heads: int = 12,
    assembly_num_heads: int = 12,
    pruning_stages: Sequence[int] = (3, 6, 9),
    prune_ratio: float = 0.9,
) -> SparseUNETR:
    """Build the network that a published sparse or dense checkpoint belongs to, and fill it.

    Sizes are read from the shapes. Sparse models get the published behaviour: log-sigmoid scores, counts in
    floating point (which may end at no survivor), one completed grid for all skips.

    Args:
        state_dict: Contents of the file or its inner `state_dict`, with or without a leading `module.`.
        roi_size: Window in voxels (H, W, D); the position table has one row per patch of it.
        num_heads: Heads of the encoder; no shape tells.
        assembly_num_heads: Heads of the completion block.
        pruning_stages: Zero-based blocks *before* which tokens are pruned (published numbers plus one).
        prune_ratio: Share of the tokens present that each stage removes; 1 minus the keep ratio.

    Returns:
        The network in evaluation mode.

    Raises:
        CheckpointError: a name is unknown or missing, or a shape contradicts the others; nothing is ignored.
    """
    state = unwrap(state_dict)
    sparse = any(key.startswith(("completion_net.", "encoder.score_predictor_list.")) for key in state)
    sizes = _sizes(state, as_triple(roi_size, name="roi_size"))
    sizes["num_heads"] = num_heads
    if sparse:
        sizes |= _assembly_sizes(state) | PUBLISHED_OPTIONS
        sizes |= {"pruning_stages": tuple(pruning_stages), "assembly_num_heads": assembly_num_heads}
        # In floating point 1 - 0.9 lies below 0.1: the published counts depend on it.
        sizes["keep_ratio"] = 1 - prune_ratio
        state = _without_fixed_tables(state, token_grid(sizes["roi_size"], sizes["patch_size"]))
    else:
        sizes["pruning_stages"] = ()
    net = SparseUNETR(**sizes)
    if not sparse and net.config.skip_blocks != _SKIP_BLOCKS:
        raise CheckpointError(
            f"published dense models feed blocks {_SKIP_BLOCKS} to the skips, which takes a depth of 12",
            received=net.config.depth,
            where=_WHERE,
            remedy="convert a model of depth 12",
        )
    load_exactly(net, rename(state, PUBLISHED), PUBLISHED, where=_WHERE)
    return net.eval()


def load_selfmedmae_encoder(
    net: SparseUNETR, state_dict: Mapping[str, object], *, source_grid: Triple | None = None
) -> AdapterReport:
    """Fill the encoder of `net` with a SelfMedMAE pre-training, in place.

    The patch embedding is left out where channels or patch size differ; the position table is resized where
    the grid differs, and the class token gets a zero row in it.

    Args:
        net: Network whose encoder has the width and depth of the pre-training.
        state_dict: Contents of the file or its inner `state_dict`, with or without a leading `module.`.
        source_grid: Token grid of the pre-training where it is neither the network's nor a cube.

    Returns:
        What was matched, resized, dropped and left as it was.

    Raises:
        CheckpointError: a name is unknown or missing, width or depth differ, or the grid cannot be told.
    """
    renamed = rename(unwrap(state_dict), SELFMEDMAE, SELFMEDMAE_DROPPED)
    return load_encoder(net, renamed, source_grid=source_grid, where="SelfMedMAE checkpoint")


def _sizes(state: Mapping[str, Tensor], roi_size: Triple) -> dict[str, Any]:
    """Sizes of encoder and decoder, read from the shapes."""
    width, channels, *patch = shape_of(state, "encoder.patch_embed.proj.weight", 5, where=_WHERE)
    (hidden, _) = shape_of(state, "encoder.blocks.0.mlp.fc1.weight", 2, where=_WHERE)
    num_classes = shape_of(state, "decoder.out.conv.conv.weight", 5, where=_WHERE)[0]
    feature_size = shape_of(state, "decoder.encoder1.layer.conv1.conv.weight", 5, where=_WHERE)[0]
    return {
        "in_channels": channels,
        "num_classes": num_classes,
        "roi_size": roi_size,
        "patch_size": tuple(patch),
        "embed_dim": width,
        "depth": count_blocks(state, "encoder.blocks."),
        "feature_size": feature_size,
        "mlp_ratio": hidden / width,
    }


def _assembly_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    assembly_dim, _ = shape_of(state, "completion_net.pre_linear_list.0.weight", 2, where=_WHERE)
    return {"assembly_dim": assembly_dim, "assembly_depth": count_blocks(state, "completion_net.blocks.")}


def _without_fixed_tables(state: Mapping[str, Tensor], grid: Triple) -> dict[str, Tensor]:
    """Leave out what carries no information: the all-ones policy, and the sine-cosine table once verified."""
    rest = dict(state)
    rest.pop(_POLICY, None)
    if _TABLE not in rest:
        refuse(_WHERE, missing=[_TABLE])
    stored = rest.pop(_TABLE).float()
    expected = sine_cosine_position(grid, stored.shape[-1])
    expected = torch.cat((torch.zeros(1, expected.shape[1]), expected))[None]
    if stored.shape != expected.shape:
        refuse(_WHERE, shapes=[f"{_TABLE} {tuple(stored.shape)} instead of {tuple(expected.shape)}"])
    # Published in float32 throughout, which moves the largest angles by a few 1e-6.
    if not torch.allclose(stored, expected, rtol=0, atol=1e-4):
        raise CheckpointError(
            "the completion's position table must be the sine-cosine table of the grid",
            received=f"a difference of {float((stored - expected).abs().max()):.3g}",
            remedy="check roi_size, the axes may be in another order",
            where=f"{_WHERE}: {_TABLE}",
        )
    return rest
