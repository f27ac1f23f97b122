"""The models that are measured side by side: those built from one preset, and peers at its window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sparseg.benchmark.naive import NaiveSparse
from sparseg.config import parse_config
from sparseg.errors import ConfigError
from sparseg.models.baselines import BASELINES, baseline_options
from sparseg.models.config import SegmenterConfig
from sparseg.models.network import parse_network
from sparseg.models.peers import PeerNet, fuse_attention
from sparseg.models.presets import PRESETS
from sparseg.models.presets import preset as preset_values
from sparseg.models.segmenter import SparseUNETR
from sparseg.shapes import Triple, num_tokens, token_grid

VARIANTS = ("sparse", "dense_p8", "dense_p16_monai", "naive_sparse")
PEERS = tuple(name for name in PRESETS if name.startswith("peer_"))
# Other scorings, completions and merging at the preset's sizes; our defaults, where not named otherwise.
RIVALS = tuple(name for name in BASELINES if name not in ("sparse", "scored", "edge", "dense_p8"))
# Words that stand for several.
GROUPS = {
    "baselines": RIVALS,
    "peers": tuple(name for name in PEERS if not name.endswith("_tiny")),
    "peers_tiny": tuple(name for name in PEERS if name.endswith("_tiny")),
}
MODES = ("inference", "training")
# What torch.compile takes: nothing, the transformer blocks, the whole network.
COMPILED = ("none", "blocks", "all")
MONAI_DEPTH = 12


@dataclass(frozen=True)
class Variant:
    """One model and what the rows say about it.

    Attributes:
        name: One of `VARIANTS`, `RIVALS` or `PEERS`, with `+blocks` or `+all` where it is compiled.
        net: `[B, C, *roi]` -> logits `[B, K, *roi]`.
        encoder: Submodule whose return ends the encoder part; None in a network without such parts.
        decoder: Submodule whose call starts the decoder part, everything in between being assembly; None:
            the decoder starts where the encoder ends.
        patch_size: Patch edges in voxels; None where there are no patch tokens.
        token_counts: Patch tokens from the start and after each pruning stage.
        keep_ratios: Keep ratio of each pruning stage.
    """

    name: str
    net: nn.Module
    encoder: nn.Module | None
    decoder: nn.Module | None
    patch_size: Triple | None
    token_counts: list[int]
    keep_ratios: tuple[float, ...]


def bench_config(preset: str) -> SegmenterConfig:
    """Settings of a preset that can be benchmarked.

    Raises:
        ConfigError: unknown preset, or one without pruning stages.
    """
    config = parse_network(preset_values(preset), where=preset)
    if not isinstance(config, SegmenterConfig) or not config.pruning_stages:
        raise ConfigError(
            "a benchmark compares a sparse model with dense ones",
            received=f"preset {preset}, which prunes no tokens",
            remedy="choose a preset with pruning stages, e.g. btcv",
            where="preset",
        )
    return config


def choose_variants(
    config: SegmenterConfig, names: Sequence[str] | None = None, compiled: Sequence[str] = ("none",)
) -> tuple[list[str], dict[str, str]]:
    """Return the variants to measure, in the order of `VARIANTS`, `RIVALS` and `PEERS`, and why not others.

    Args:
        config: Settings of the sparse model.
        names: Of `VARIANTS`, `RIVALS`, `PEERS` and `GROUPS`; None takes `VARIANTS`.
        compiled: Of `COMPILED`: each variant is measured with each of them.

    Returns:
        Their names; name -> reason of those of `VARIANTS`, and of others asked for, that are not among them.

    Raises:
        ConfigError: an unknown name, or nothing left to measure.
    """
    asked = VARIANTS if names is None else names
    wanted = {name for word in asked for name in GROUPS.get(word, (word,))}
    unknown = sorted(wanted - {*VARIANTS, *RIVALS, *PEERS})
    if unknown:
        raise ConfigError(
            f"a variant must be one of {', '.join((*VARIANTS, *GROUPS, *RIVALS, *PEERS))}",
            received=", ".join(unknown),
            where="variants",
            remedy="leave the option out to time all",
        )
    left_out = {}
    candidates = [*VARIANTS, *(name for name in (*RIVALS, *PEERS) if name in wanted)]
    for name in candidates:
        reason = _misfit(name, config) if name in wanted else "not asked for"
        if reason:
            left_out[name] = reason
    chosen = [name for name in candidates if name not in left_out]
    if not chosen:
        raise ConfigError(
            "at least one variant must fit the preset",
            received=left_out,
            where="variants",
            remedy="choose another preset",
        )
    parts = [part for part in COMPILED if part in compiled]
    if len(parts) != len(set(compiled)) or not parts:
        raise ConfigError(
            f"what is compiled must be of {', '.join(COMPILED)}",
            received=", ".join(compiled) or "nothing",
            where="compile",
            remedy="e.g. --compile none blocks",
        )
    entries = []
    for name in chosen:
        for part in parts:
            if part != "none" and name not in (*VARIANTS[:3], *RIVALS):
                left_out[f"{name}+{part}"] = "only networks of a plain ViT are compiled"
            else:
                entries.append(name if part == "none" else f"{name}+{part}")
    return entries, left_out


def plain_name(name: str) -> str:
    """The variant's name without what of it is compiled."""
    return name.partition("+")[0]


def _misfit(name: str, config: SegmenterConfig) -> str:
    """Why a variant cannot be built at the sizes of `config`; empty where it can."""
    roi = "x".join(str(edge) for edge in config.roi_size)
    if name in PEERS:
        try:
            parse_network(_peer_values(name, config))
        except ConfigError as error:
            return error.rule
    if name in RIVALS:
        try:
            _rival_config(name, config)
        except ConfigError as error:
            return error.rule
    if name == "dense_p8" and any(edge % 8 for edge in config.roi_size):
        return f"roi {roi} is not a multiple of patch 8"
    if name == "dense_p16_monai":
        if config.depth != MONAI_DEPTH:
            return f"MONAI's UNETR has depth {MONAI_DEPTH}, the preset {config.depth}"
        if any(edge % 16 for edge in config.roi_size):
            return f"roi {roi} is not a multiple of patch 16"
    if name == "naive_sparse" and not config.class_token:
        return "the published code has a class token, the preset none"
    return ""


def build_variant(name: str, config: SegmenterConfig, seed: int = 0) -> Variant:
    """Build one model with random weights; `sparse` and `naive_sparse` of one seed are equal.

    Args:
        name: One of `VARIANTS`, `RIVALS` or `PEERS` that fits `config`; `+blocks` or `+all` compiles it.
        config: Settings of the sparse model.
        seed: Of the weights; torch's global generator is left as it was.
    """
    variant = _build(plain_name(name), config, seed)
    part = name.partition("+")[2]
    if part == "all":
        variant.net.compile()
    elif part:
        # MONAI's ViT has a list of blocks, ours says which they are.
        net: Any = variant.net
        for block in net.blocks() if isinstance(net, SparseUNETR) else net.vit.blocks:
            block.compile(dynamic=False)
    return replace(variant, name=name)


def _build(name: str, config: SegmenterConfig, seed: int) -> Variant:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "dense_p16_monai":
            return _monai_variant(config)
        if name in PEERS:
            return _peer_variant(name, config)
        if name == "dense_p8":
            config = _dense_patch8(config)
        if name in RIVALS:
            config = _rival_config(name, config)
        net = SparseUNETR(**config.model_dump())
    counts = net.token_counts()
    if name == "naive_sparse":
        naive = NaiveSparse(net)
        return Variant(
            name, naive, naive.encoder, naive.decoder, config.patch_size, counts, config.keep_ratios
        )
    return Variant(name, net, net.encoder, net.decoder, config.patch_size, counts, config.keep_ratios)


def _rival_config(name: str, config: SegmenterConfig) -> SegmenterConfig:
    """The preset with what makes a baseline."""
    changes = baseline_options(name, config)["model"]
    return parse_config(SegmenterConfig, {**config.model_dump(), **changes}, where=name)


def _dense_patch8(config: SegmenterConfig) -> SegmenterConfig:
    """Same sizes, nothing pruned, and the per-depth skips of a plain UNETR."""
    values = config.model_dump() | {
        "pruning_stages": (),
        "patch_size": (8, 8, 8),
        "skips": "per_depth",
        "num_keep": None,
    }
    if isinstance(config.keep_ratio, tuple):
        values["keep_ratio"] = ()
    return parse_config(SegmenterConfig, values)


def _monai_variant(config: SegmenterConfig) -> Variant:
    from monai.networks.nets import UNETR

    net = UNETR(
        in_channels=config.in_channels,
        out_channels=config.num_classes,
        img_size=config.roi_size,
        feature_size=config.feature_size,
        hidden_size=config.embed_dim,
        mlp_dim=round(config.embed_dim * config.mlp_ratio),
        num_heads=config.num_heads,
        qkv_bias=config.qkv_bias,
    )
    fuse_attention(net)
    patch_size = (16, 16, 16)
    counts = [num_tokens(token_grid(config.roi_size, patch_size))]
    return Variant("dense_p16_monai", net, net.vit, None, patch_size, counts, ())


def _peer_values(name: str, config: SegmenterConfig) -> dict[str, Any]:
    """A peer's own sizes, at the window, channels and classes of the sparse model."""
    shared = {key: getattr(config, key) for key in ("in_channels", "num_classes", "roi_size")}
    return {**preset_values(name), **shared}


def _peer_variant(name: str, config: SegmenterConfig) -> Variant:
    net = PeerNet(**_peer_values(name, config))
    return Variant(name, net, net.encoder, None, net.config.patch_size, net.token_counts(), ())
