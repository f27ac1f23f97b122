"""Sparse encoder: transformer blocks with pruning stages in between (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseg.errors import ShapeError
from sparseg.layers.block import Block, EvaBlock
from sparseg.layers.position import resize_position, sine_cosine_position
from sparseg.layers.rotary import rotary_table
from sparseg.models.config import SegmenterConfig
from sparseg.models.counts import token_counts
from sparseg.models.sequence import TokenSequence, run_block, run_merging_block
from sparseg.shapes import Triple, token_grid
from sparseg.tokens.assemble import assemble_grid
from sparseg.tokens.embed import PatchEmbed
from sparseg.tokens.fuse import fuse_pruned
from sparseg.tokens.merge import unmerge_tokens, unmerged
from sparseg.tokens.prune import TokenPruning, full_grid
from sparseg.tokens.stages import Selection, StageContext, StageScores, StageTokens

# Groups of tokens that are present or left earlier -> the grid `[B, L, E]` of a skip.
PlaceSkip = Callable[[Sequence[StageTokens]], Tensor]


class EncoderOutput(NamedTuple):
    """What the encoder hands on.

    Attributes:
        stages: Pruned groups in stage order, then the survivors, all *before* any final norm. With merging
            one group of all patches, each with the value of the token it is part of.
        class_token: `[B, 1, E]` or None, before the final norm.
        skips: The grid `[B, L, E]` as it stood after each skip block; empty where skips are shared.
        decisions: What each pruning stage decided.
    """

    stages: list[StageTokens]
    class_token: Tensor | None
    skips: list[Tensor]
    decisions: list[StageScores]


class SparseEncoder(nn.Module):
    """Vision transformer that drops tokens for good at its pruning stages.

    Args:
        config: Settings; `pruning_stages` are zero-based blocks *before* which tokens are pruned.

    Attributes:
        recompute: Whether the blocks' activations are computed again in the backward pass.
        rotary: Rotary positions of the roi's grid; None where blocks take none.
    """

    rotary: Tensor | None

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.in_channels, dim, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        table = sine_cosine_position(config.grid, dim)
        if config.class_token:
            table = torch.cat((torch.zeros(1, dim), table))
        self.pos_embed = nn.Parameter(table.unsqueeze(0))
        rates = [config.drop_path * number / max(1, config.depth - 1) for number in range(config.depth)]
        kind = EvaBlock if config.block == "eva" else Block
        self.blocks = nn.ModuleList(
            kind(
                dim,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=config.qkv_bias,
                norm_eps=config.norm_eps,
                drop_path=rate,
            )
            for rate in rates
        )
        self.prunings = nn.ModuleList(
            TokenPruning(
                dim,
                scoring=config.scoring,
                score_transform=config.score_transform,
                soft_topk=config.soft_topk,
                temperature=config.temperature,
                noise_scale=config.noise_scale,
                in_channels=config.in_channels,
                patch_size=config.patch_size,
            )
            for _ in config.pruning_stages
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        rotary = rotary_table(config.grid, dim // config.num_heads) if config.block == "eva" else None
        self.register_buffer("rotary", rotary, persistent=False)

    def token_counts(self, length: int, keep_ratios: tuple[float, ...] | None = None) -> list[int]:
        """See `sparseg.models.counts.token_counts`."""
        return token_counts(self.config, length, keep_ratios)

    def forward(
        self, image: Tensor, selection: Selection | None = None, place_skip: PlaceSkip = assemble_grid
    ) -> EncoderOutput:
        """[B, C, H, W, D] -> groups of tokens. Edges must be multiples of the patch edges.

        Args:
            image: Windows.
            selection: Settings of this call.
            place_skip: Makes the grid of a skip; by default tokens pruned earlier stand with the value they
                left with.
        """
        config, selection = self.config, selection or Selection()
        sequence, rotary = (
            self._embed(image),
            self.rotary_places(token_grid(image.shape[2:], config.patch_size)),
        )
        _check_protected(selection, sequence.present.indices)
        counts = self.token_counts(sequence.present.indices.shape[1], selection.keep_ratios)
        if config.merging != "none":
            return self._forward_merging(sequence, counts)
        pruned_groups: list[StageTokens] = []
        skips: list[Tensor] = []
        decisions: list[StageScores] = []
        for number, block in enumerate(self.blocks):
            if number in config.pruning_stages:
                stage = len(pruned_groups)
                context = StageContext(image, config.patch_size, stage, sequence.attention)
                present, pruned, decision = self.prunings[stage](
                    sequence.present, counts[stage + 1], selection, context
                )
                if config.pruned_tokens == "fuse":
                    fused = fuse_pruned(pruned, decision, sequence.fused, sequence.fused_attention)
                    sequence = sequence._replace(fused=fused)
                sequence = sequence._replace(present=present)
                pruned_groups.append(pruned)
                decisions.append(decision)
            sequence = run_block(
                block,
                sequence,
                recompute=self.recompute,
                wants_attention=self._wants_attention(number),
                rotary=rotary,
            )
            if config.has_depth_skips:
                taken = config.skip_blocks.count(number)  # shallow models may tap one block more than once
                skips += [place_skip([*pruned_groups, sequence.present])] * taken if taken else []
        return EncoderOutput([*pruned_groups, sequence.present], sequence.class_token, skips, decisions)

    def _forward_merging(self, sequence: TokenSequence, counts: list[int]) -> EncoderOutput:
        """Every block merges some tokens away; skips and result give each patch a copy of its token."""
        config, skips = self.config, []
        present, class_token = unmerged(sequence.present.tokens), sequence.class_token
        for number, (block, (before, after)) in enumerate(zip(self.blocks, pairwise(counts), strict=True)):
            present, class_token = run_merging_block(
                block, present, class_token, before - after, recompute=self.recompute
            )
            if config.has_depth_skips and number in config.skip_blocks:
                skips += [unmerge_tokens(present)] * config.skip_blocks.count(number)
        survivors = StageTokens(unmerge_tokens(present), sequence.present.indices)
        return EncoderOutput([survivors], class_token, skips, [])

    def _wants_attention(self, block: int) -> bool:
        return self.config.scoring == "class_attention" and block + 1 in self.config.pruning_stages

    def normed_survivors(self, output: EncoderOutput) -> tuple[StageTokens, Tensor | None]:
        """The survivors and the class token after the final LayerNorm."""
        survivors = output.stages[-1]
        class_token = None if output.class_token is None else self.norm(output.class_token)
        normed = StageTokens(self.norm(survivors.tokens), survivors.indices, weight=survivors.weight)
        return normed, class_token

    def rotary_places(self, grid: Triple) -> Tensor | None:
        """Rotary positions of a token grid, `[2, L, E/heads]`; None where blocks take none."""
        if self.rotary is None or grid == self.config.grid:
            return self.rotary
        return rotary_table(grid, self.rotary.shape[2]).to(self.rotary)

    def _embed(self, image: Tensor) -> TokenSequence:
        grid = token_grid(image.shape[2:], self.config.patch_size)
        offset = 0 if self.cls_token is None else 1
        position = resize_position(self.pos_embed[:, offset:], self.config.grid, grid)
        present = full_grid(self.patch_embed(image) + position)
        if self.cls_token is None:
            return TokenSequence(present, None)
        class_token = self.cls_token + self.pos_embed[:, :1]
        return TokenSequence(present, class_token.expand(image.shape[0], -1, -1))


def _check_protected(selection: Selection, indices: Tensor) -> None:
    protected = selection.protected
    if protected is not None and (protected.shape != indices.shape or protected.dtype != torch.bool):
        raise ShapeError(
            f"protected positions must be a bool tensor of shape {tuple(indices.shape)}",
            received=f"{protected.dtype} of shape {tuple(protected.shape)}",
            remedy="give one value per image and patch of the token grid",
            where="selection.protected",
        )


def grid_map(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """[B, L, E] row-major -> feature map [B, E, h, w, d]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
