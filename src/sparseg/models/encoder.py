"""Sparse encoder: transformer blocks with pruning stages in between (paper, section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseg.errors import ConfigError, ShapeError
from sparseg.layers.block import Block
from sparseg.layers.position import resize_position, sine_cosine_position
from sparseg.layers.recompute import run_part
from sparseg.models.config import SegmenterConfig
from sparseg.shapes import token_grid
from sparseg.tokens.assemble import assemble_grid
from sparseg.tokens.embed import PatchEmbed
from sparseg.tokens.prune import TokenPruning, full_grid
from sparseg.tokens.select import num_keep
from sparseg.tokens.stages import Selection, StageScores, StageTokens


class EncoderOutput(NamedTuple):
    """What the encoder hands on.

    Attributes:
        stages: Pruned groups in stage order, then the survivors, all *before* any final norm.
        class_token: `[B, 1, E]` or None, before the final norm.
        skips: The grid `[B, L, E]` as it stood after each skip block, tokens pruned earlier with the value
            they left with; empty where skips are shared.
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
    """

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
        self.blocks = nn.ModuleList(
            Block(
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
                score_transform=config.score_transform,
                soft_topk=config.soft_topk,
                temperature=config.temperature,
                noise_scale=config.noise_scale,
            )
            for _ in config.pruning_stages
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)

    def token_counts(self, length: int, keep_ratios: tuple[float, ...] | None = None) -> list[int]:
        """Patch tokens present from the start and after each pruning stage, for a grid of `length` tokens.

        Args:
            length: L.
            keep_ratios: One per stage in place of the model's ratios or counts.

        Raises:
            ConfigError: an absolute count above the number of tokens present, or not one ratio per stage.
        """
        config, counts = self.config, [length]
        if keep_ratios is not None and len(keep_ratios) != len(config.pruning_stages):
            raise ConfigError(
                f"a selection must have one keep ratio per pruning stage ({len(config.pruning_stages)})",
                received=keep_ratios,
                remedy="give as many, or None for those of the model",
                where="selection.keep_ratios",
            )
        for stage, ratio in enumerate(keep_ratios or config.keep_ratios):
            if config.num_keep is None or keep_ratios is not None:
                count = num_keep(counts[-1], ratio, config.count_rule)
            else:
                count = config.num_keep[stage]
            if count > counts[-1]:
                raise ConfigError(
                    f"stage {stage} can keep at most the {counts[-1]} tokens that reach it",
                    received=count,
                    remedy="lower num_keep or use keep_ratio",
                    where="num_keep",
                )
            counts.append(count)
        return counts

    def forward(self, image: Tensor, selection: Selection | None = None) -> EncoderOutput:
        """[B, C, H, W, D] -> groups of tokens. Edges must be multiples of the patch edges."""
        config, selection = self.config, selection or Selection()
        present, class_token = self._embed(image)
        _check_protected(selection, present.indices)
        counts = self.token_counts(present.indices.shape[1], selection.keep_ratios)
        pruned_groups: list[StageTokens] = []
        skips: list[Tensor] = []
        decisions: list[StageScores] = []
        for number, block in enumerate(self.blocks):
            if number in config.pruning_stages:
                stage = len(pruned_groups)
                present, pruned, decision = self.prunings[stage](present, counts[stage + 1], selection)
                pruned_groups.append(pruned)
                decisions.append(decision)
            present, class_token = _run_block(block, present, class_token, recompute=self.recompute)
            if config.skips == "per_depth":
                taken = config.skip_blocks.count(number)  # shallow models may tap one block more than once
                skips += [assemble_grid([*pruned_groups, present])] * taken
        return EncoderOutput([*pruned_groups, present], class_token, skips, decisions)

    def normed_survivors(self, output: EncoderOutput) -> tuple[StageTokens, Tensor | None]:
        """The survivors and the class token after the final LayerNorm."""
        survivors = output.stages[-1]
        class_token = None if output.class_token is None else self.norm(output.class_token)
        return StageTokens(self.norm(survivors.tokens), survivors.indices), class_token

    def _embed(self, image: Tensor) -> tuple[StageTokens, Tensor | None]:
        grid = token_grid(image.shape[2:], self.config.patch_size)
        offset = 0 if self.cls_token is None else 1
        position = resize_position(self.pos_embed[:, offset:], self.config.grid, grid)
        present = full_grid(self.patch_embed(image) + position)
        if self.cls_token is None:
            return present, None
        class_token = self.cls_token + self.pos_embed[:, :1]
        return present, class_token.expand(image.shape[0], -1, -1)


def _check_protected(selection: Selection, indices: Tensor) -> None:
    protected = selection.protected
    if protected is not None and (protected.shape != indices.shape or protected.dtype != torch.bool):
        raise ShapeError(
            f"protected positions must be a bool tensor of shape {tuple(indices.shape)}",
            received=f"{protected.dtype} of shape {tuple(protected.shape)}",
            remedy="give one value per image and patch of the token grid",
            where="selection.protected",
        )


def _run_block(
    block: nn.Module, present: StageTokens, class_token: Tensor | None, *, recompute: bool
) -> tuple[StageTokens, Tensor | None]:
    if class_token is None:
        return StageTokens(run_part(block, present.tokens, recompute=recompute), present.indices), None
    x = run_part(block, torch.cat((class_token, present.tokens), dim=1), recompute=recompute)
    return StageTokens(x[:, 1:], present.indices), x[:, :1]


def grid_map(tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """[B, L, E] row-major -> feature map [B, E, h, w, d]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
