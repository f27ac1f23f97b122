"""Settings of a segmenter. Sizes of named models live in `presets.py` and nowhere else."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from sparseg.config import Config
from sparseg.layers.rotary import check_head_width
from sparseg.shapes import Triple, as_triple, token_grid
from sparseg.tokens.complete import FORGETFUL, Completion
from sparseg.tokens.score import ScoreTransform
from sparseg.tokens.scoring import Scoring
from sparseg.tokens.select import CountRule, SoftTopK


class SegmenterConfig(Config):
    """All settings of `SparseUNETR`, with the defaults of the public API.

    Where the published code is measurably weak the defaults differ from it; docs/explanation/choices.md has
    the reasons, and `PUBLISHED_OPTIONS` switches the published behaviour on.

    Attributes:
        in_channels: Image channels C.
        num_classes: Outputs K, background included.
        roi_size: Window in voxels (H, W, D), a multiple of the patch.
        patch_size: Patch edge(s) in voxels: 1, 2, 4, 8 or 16 per axis.
        embed_dim: Token width E.
        depth: Transformer blocks.
        num_heads: Attention heads.
        feature_size: Width of the decoder's finest level.
        pruning_stages: Zero-based blocks before which tokens are pruned; empty for a dense model.
        keep_ratio: Share of the tokens entering a stage that leave it, one for all stages or one per stage;
            with `merging` one for all blocks, at least 0.5.
        num_keep: Absolute counts per stage instead of ratios.
        scoring: What scores the tokens: a learned `predictor` (the paper); convolutions over the `image`,
            which may stand before block 0; `random`; `stride`, every n-th;
            `intensity` or `entropy` of the image patch; `class_attention` (EViT); `gates` (DynamicViT).
        pruned_tokens: `remember` them for the completion, or `fuse` them into one token that goes on with the
            survivors (EViT) and forget them.
        completion: How the grid is completed: token `assembly` (the paper), `mask_token` and blocks (MAE),
            `last_layer` fusion, or a copy of the `nearest` survivor.
        merging: `none`, or `tome`: every block merges alike tokens, and none is pruned.
        num_merge: Tokens that each block merges away, in place of `keep_ratio`.
        block: `vit`; or `eva`, the block of EVA-02 and Primus: rotary positions, SwiGLU, LayerScale.
        mlp_ratio: Hidden width of the MLPs over E.
        qkv_bias: Bias of the attention projections.
        class_token: Whether a class token runs along (never scored, never pruned).
        norm_eps: Epsilon of the encoder's and assembler's LayerNorms.
        drop_path: Stochastic depth rate of the last block; rises linearly from 0.
        assembly_depth: Completion blocks over the full grid (`assembly`, `mask_token`).
        assembly_dim: Their width; None takes E.
        assembly_num_heads: Their heads; None takes those of the encoder.
        skips: `per_depth` gives each decoder level the grid as it stood at its depth, pruned places filled as
            `completion` fills them; `shared` gives all the completed grid (published).
        decoder: `unetr`; `half_resolution`, which convolves at half the image's resolution at most; or
            `light`, transposed convolutions alone, from token to voxels, without image and skips (Primus).
        score_transform: Scale of the scores: `standardize`, `log_sigmoid` (published) or `none`.
        soft_topk: Gradient of the selection: `budget_exact` or `gumbel_softmax` (published).
        temperature: Temperature of the soft top-k, in units of the transformed scores.
        noise_scale: Factor on the Gumbel noise added to scores while training; 0 selects as evaluation does.
        count_rule: `exact` keeps max(1, floor(ratio x n)) in decimal arithmetic; `published` int(n x ratio)
            in floating point.
        deep_supervision: Further output layers, at decoder level 1 (1) or levels 1 and 2 (2), used in
            training only.
    """

    in_channels: int = Field(default=1, ge=1)
    num_classes: int = Field(default=14, ge=1)
    roi_size: Triple = (96, 96, 96)
    patch_size: Triple = (8, 8, 8)
    embed_dim: int = Field(default=768, ge=4)
    depth: int = Field(default=12, ge=1)
    num_heads: int = Field(default=12, ge=1)
    feature_size: int = Field(default=16, ge=1)
    pruning_stages: tuple[int, ...] = (3, 6, 9)
    keep_ratio: tuple[float, ...] | float = 0.1
    num_keep: tuple[int, ...] | None = None
    scoring: Scoring = "predictor"
    pruned_tokens: Literal["remember", "fuse"] = "remember"
    completion: Completion = "assembly"
    merging: Literal["none", "tome"] = "none"
    num_merge: int | None = Field(default=None, ge=1)

    block: Literal["vit", "eva"] = "vit"
    mlp_ratio: float = Field(default=4.0, gt=0)
    qkv_bias: bool = True
    class_token: bool = True
    norm_eps: float = Field(default=1e-6, gt=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    assembly_depth: int = Field(default=1, ge=0)
    assembly_dim: int | None = Field(default=None, ge=4)
    assembly_num_heads: int | None = Field(default=None, ge=1)

    skips: Literal["per_depth", "shared"] = "per_depth"
    decoder: Literal["unetr", "half_resolution", "light"] = "unetr"
    score_transform: ScoreTransform = "standardize"
    soft_topk: SoftTopK = "budget_exact"
    temperature: float = Field(default=0.5, gt=0)
    noise_scale: float = Field(default=0.0, ge=0)
    count_rule: CountRule = "exact"
    deep_supervision: int = Field(default=0, ge=0, le=2)

    @field_validator("roi_size", "patch_size", mode="before")
    @classmethod
    def _triple(cls, value: object) -> Triple:
        if isinstance(value, int | list | tuple):
            return as_triple(value, name="size")
        raise ValueError("must be one or three positive integers")

    @field_validator("patch_size")
    @classmethod
    def _power_of_two(cls, value: Triple) -> Triple:
        if any(edge not in (1, 2, 4, 8, 16) for edge in value) or max(value) < 2:
            raise ValueError("patch edges must be 1, 2, 4, 8 or 16 voxels, not all 1")
        return value

    @field_validator("keep_ratio")
    @classmethod
    def _share(cls, value: tuple[float, ...] | float) -> tuple[float, ...] | float:
        for ratio in value if isinstance(value, tuple) else (value,):
            if not 0.0 < ratio <= 1.0:
                raise ValueError(
                    "a keep ratio must be above 0 and at most 1: it is the share of tokens that stays"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        token_grid(self.roi_size, self.patch_size)
        stages = self.pruning_stages
        if list(stages) != sorted(set(stages)) or any(not 0 <= stage < self.depth for stage in stages):
            raise ValueError(
                f"pruning stages must be ascending block numbers in 0..{self.depth - 1}, got {stages}"
            )
        per_stage = {"keep_ratio": self.keep_ratio, "num_keep": self.num_keep}
        for name, values in per_stage.items():
            if isinstance(values, tuple) and len(values) != len(stages):
                raise ValueError(
                    f"{name} must have one entry per pruning stage ({len(stages)}), got {len(values)}"
                )
        if self.num_keep is not None and any(count < 1 for count in self.num_keep):
            raise ValueError(f"num_keep must be at least 1 at every stage, got {self.num_keep}")
        for heads, dim in ((self.num_heads, self.embed_dim), (self.assembly_heads, self.assembly_width)):
            if dim % heads:
                raise ValueError(f"the width {dim} must be a multiple of the number of heads {heads}")
        if self.block == "eva":
            check_head_width(self.embed_dim // self.num_heads)
        if stages and self.embed_dim % 4:
            raise ValueError(
                f"embed_dim must be a multiple of 4 where tokens are scored, got {self.embed_dim}"
            )
        return self

    @model_validator(mode="after")
    def _ways_go_together(self) -> Self:
        if self.merging != "none":
            self._check_merging()
        elif self.num_merge is not None:
            raise ValueError(f"num_merge needs merging: tome, got {self.num_merge} without")
        if self.pruned_tokens == "fuse" and self.scoring != "class_attention":
            raise ValueError(
                f"pruned_tokens: fuse weighs by the attention of scoring class_attention, got {self.scoring}"
            )
        if self.pruned_tokens == "fuse" and self.completion not in FORGETFUL:
            raise ValueError(
                f"pruned_tokens: fuse forgets the tokens, so completion must be one of "
                f"{', '.join(FORGETFUL)}, got {self.completion}"
            )
        if self.merging != "none" and self.block == "eva":
            raise ValueError("merging needs block: vit, as a merged token has no one place to rotate by")
        if self.decoder == "light" and self.deep_supervision >= max(self.patch_size).bit_length():
            raise ValueError(
                f"decoder: light has {max(self.patch_size).bit_length() - 1} levels at patch size "
                f"{self.patch_size}, too few for deep_supervision {self.deep_supervision}"
            )
        if self.scoring == "class_attention" and self.pruning_stages:
            if not self.class_token:
                raise ValueError("scoring class_attention needs class_token: true")
            if 0 in self.pruning_stages:
                raise ValueError(
                    "scoring class_attention needs a block before each pruning stage, got stage 0"
                )
        return self

    def _check_merging(self) -> None:
        if self.pruning_stages:
            raise ValueError(f"merging needs pruning_stages to be empty, got {self.pruning_stages}")
        if self.num_merge is None and (isinstance(self.keep_ratio, tuple) or self.keep_ratio < 0.5):
            raise ValueError(
                "merging needs one keep_ratio for all blocks, at least 0.5 as a block can merge half of its "
                f"tokens, got {self.keep_ratio}"
            )

    @property
    def grid(self) -> Triple:
        """Token grid (h, w, d) of one roi."""
        return token_grid(self.roi_size, self.patch_size)

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """Keep ratio of each pruning stage."""
        ratio = self.keep_ratio
        return ratio if isinstance(ratio, tuple) else (ratio,) * len(self.pruning_stages)

    @property
    def assembly_width(self) -> int:
        """Width E_c of the completion blocks."""
        return self.assembly_dim or self.embed_dim

    @property
    def assembly_heads(self) -> int:
        """Heads of the completion blocks."""
        return self.assembly_num_heads or self.num_heads

    @property
    def has_depth_skips(self) -> bool:
        """Whether the decoder takes the grid as it stood at several depths."""
        return self.skips == "per_depth" and self.decoder != "light"

    @property
    def skip_blocks(self) -> Triple:
        """Zero-based blocks whose outputs feed the skips: 3, 6, 9 at depth 12, as in MONAI's UNETR."""
        last = self.depth - 1
        return (min(self.depth // 4, last), min(self.depth // 2, last), min(3 * self.depth // 4, last))


PUBLISHED_OPTIONS = {
    "skips": "shared",
    "score_transform": "log_sigmoid",
    "soft_topk": "gumbel_softmax",
    "temperature": 1.0,
    "noise_scale": 1.0,
    "count_rule": "published",
}

# What goes beyond the paper: tokens leave before the first block by scores of the image, no block completes
# the grid, and nothing is convolved at full resolution (docs/explanation/tasks.md has what that costs and
# brings).
FAST_OPTIONS = {
    "scoring": "image",
    "pruning_stages": (0,),
    "keep_ratio": 0.15,
    "assembly_depth": 0,
    "decoder": "half_resolution",
}
