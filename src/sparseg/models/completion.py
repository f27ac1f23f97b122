"""Which module completes the grid, as the settings say."""

from __future__ import annotations

from sparseg.models.config import SegmenterConfig
from sparseg.tokens.assemble import TokenAssembler
from sparseg.tokens.complete import LastLayerFusion, MaskTokenCompletion, NearestCompletion

CompletionModule = TokenAssembler | MaskTokenCompletion | LastLayerFusion | NearestCompletion


def make_completion(config: SegmenterConfig) -> CompletionModule:
    """Build the completion of a model with pruning stages."""
    if config.completion == "last_layer":
        return LastLayerFusion(config.embed_dim, norm_eps=config.norm_eps)
    if config.completion == "nearest":
        return NearestCompletion(config.embed_dim)
    if config.completion == "mask_token":
        return MaskTokenCompletion(
            config.embed_dim,
            assembly_dim=config.assembly_width,
            assembly_depth=config.assembly_depth,
            num_heads=config.assembly_heads,
            mlp_ratio=config.mlp_ratio,
            norm_eps=config.norm_eps,
            skip_token=config.has_depth_skips,
        )
    return TokenAssembler(
        config.embed_dim,
        config.grid,
        num_pruned_groups=len(config.pruning_stages),
        assembly_dim=config.assembly_width,
        assembly_depth=config.assembly_depth,
        num_heads=config.assembly_heads,
        mlp_ratio=config.mlp_ratio,
        norm_eps=config.norm_eps,
    )
