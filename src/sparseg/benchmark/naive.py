"""The sparse model as a plain implementation writes it: explicit attention and boolean masks.

Same weights and same logits as `SparseUNETR`; it exists to be measured against. Tokens leave by boolean
indexing and return by boolean assignment into a zero buffer, the class token lies within (row 0), and the
softmax matrix is materialised, all as in the published research code (Zhou et al., IPMI 2023).

Shapes: x `[B, 1+n, E]` with the class token in front; grid masks `[B, 1+L]` bool.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseg.errors import ConfigError
from sparseg.layers.attention import Attention
from sparseg.layers.block import Block
from sparseg.models.config import SegmenterConfig
from sparseg.models.encoder import SparseEncoder, grid_map
from sparseg.models.segmenter import SparseUNETR
from sparseg.tokens.assemble import TokenAssembler
from sparseg.tokens.prune import TokenPruning
from sparseg.tokens.select import gumbel_noise, straight_through_mask


class MaskedGroup(NamedTuple):
    """Tokens `[B, m, E]` and the grid mask `[B, 1+L]` that is True where they belong, m times per row."""

    tokens: Tensor
    mask: Tensor


class NaiveOutput(NamedTuple):
    """Pruned groups in stage order with the survivors (class token within) last; per-depth skip grids."""

    groups: list[MaskedGroup]
    skips: list[Tensor]


def plain_attention(layer: Attention, x: Tensor) -> Tensor:
    """Attention of timm before fused kernels: [B, n, E] -> [B, n, E], scores `[B, heads, n, n]` in memory."""
    q, k, v = layer.split_heads(layer.qkv(x))
    weights = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    out = weights.softmax(dim=-1) @ v
    result: Tensor = layer.proj(out.transpose(1, 2).flatten(2))
    return result


def plain_block(block: Block, x: Tensor) -> Tensor:
    """Pre-norm transformer block with `plain_attention`, [B, n, E] -> [B, n, E]."""
    x = x + block.drop_path(plain_attention(block.attn, block.norm1(x)))
    result: Tensor = x + block.drop_path(block.mlp(block.norm2(x)))
    return result


def remove_tokens(
    pruning: TokenPruning, present: MaskedGroup, k: int, *, training: bool
) -> tuple[MaskedGroup, MaskedGroup]:
    """Score the patch tokens of `present`, keep k and the class token; return (kept, pruned).

    While training, kept tokens are multiplied by the straight-through mask and pruned ones by one minus it,
    both of value 1, as in the published code.
    """
    x, grid = present
    batch, width = x.shape[0], x.shape[2]
    scores = pruning.scores(x[:, 1:])
    if training and pruning.noise_scale > 0:
        scores = scores + pruning.noise_scale * gumbel_noise(scores)
    if training:
        mask = straight_through_mask(
            scores, k, soft_topk=pruning.soft_topk, temperature=pruning.temperature
        ).to(x.dtype)
    else:
        mask = torch.zeros_like(scores).scatter(1, scores.topk(k, dim=1).indices, 1.0)
    mask = torch.cat((mask.new_ones(batch, 1), mask), dim=1)
    keep = mask > 0.5
    kept, pruned = x[keep].reshape(batch, -1, width), x[~keep].reshape(batch, -1, width)
    if training:
        kept = kept * mask[keep].reshape(batch, -1, 1)
        pruned = pruned * (1 - mask[~keep]).reshape(batch, -1, 1)
    kept_grid = torch.zeros_like(grid)
    kept_grid[grid] = keep.flatten()
    return MaskedGroup(kept, kept_grid), MaskedGroup(pruned, grid & ~kept_grid)


def restore_tokens(groups: list[MaskedGroup]) -> Tensor:
    """Write every group into a zero buffer at its mask -> `[B, 1+L, E]`."""
    first = groups[0]
    buffer = first.tokens.new_zeros(*first.mask.shape, first.tokens.shape[-1])
    for group in groups:
        buffer[group.mask] = group.tokens.flatten(0, 1)
    return buffer


class NaiveEncoder(nn.Module):
    """Runs the weights of a `SparseEncoder` with plain attention and boolean masks."""

    def __init__(self, encoder: SparseEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> NaiveOutput:
        """[B, C, H, W, D] of the roi -> groups of tokens, before any final norm."""
        config = self.encoder.config
        present = self._embed(image)
        counts = self.encoder.token_counts(present.tokens.shape[1] - 1)
        pruned_groups: list[MaskedGroup] = []
        skips: list[Tensor] = []
        for number, block in enumerate(self.encoder.blocks):
            if number in config.pruning_stages:
                stage = len(pruned_groups)
                pruning = self.encoder.prunings[stage]
                assert isinstance(pruning, TokenPruning)
                present, pruned = remove_tokens(pruning, present, counts[stage + 1], training=self.training)
                pruned_groups.append(pruned)
            assert isinstance(block, Block)
            present = MaskedGroup(plain_block(block, present.tokens), present.mask)
            if config.skips == "per_depth" and number in config.skip_blocks:
                taken = config.skip_blocks.count(number)
                skips += [restore_tokens([*pruned_groups, present])[:, 1:]] * taken
        return NaiveOutput([*pruned_groups, present], skips)

    def _embed(self, image: Tensor) -> MaskedGroup:
        encoder = self.encoder
        assert encoder.cls_token is not None
        patches = encoder.patch_embed(image)
        x = torch.cat((encoder.cls_token.expand(image.shape[0], -1, -1), patches), dim=1) + encoder.pos_embed
        return MaskedGroup(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))


class NaiveSparse(nn.Module):
    """A plain implementation over the very weights of `net`, which is held, not copied.

    Args:
        net: Sparse model with a class token.

    Raises:
        ConfigError: `net` prunes nothing or has no class token.
    """

    def __init__(self, net: SparseUNETR) -> None:
        super().__init__()
        config = net.config
        if (
            not isinstance(net.assembler, TokenAssembler)
            or not config.class_token
            or config.scoring != "predictor"
        ):
            raise ConfigError(
                "the plain implementation needs pruning stages, a predictor, assembly and a class token",
                received=f"pruning_stages={config.pruning_stages}, scoring={config.scoring}, "
                f"completion={config.completion}, class_token={config.class_token}",
                remedy="choose a sparse preset",
            )
        self.config: SegmenterConfig = config
        self.assembler: TokenAssembler = net.assembler
        self.decoder = net.decoder
        self.encoder = NaiveEncoder(net.encoder)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, *roi] -> logits [B, K, *roi]."""
        grid = self.config.grid
        groups, skips = self.encoder(image)
        final = self._complete(groups)
        maps = [grid_map(skip, grid) for skip in skips or [final] * 3]
        logits: Tensor = self.decoder(image, maps, grid_map(final, grid))
        return logits

    def _complete(self, groups: list[MaskedGroup]) -> Tensor:
        assembler = self.assembler
        norms = [*assembler.pruned_norms, self.encoder.encoder.norm]
        entered = []
        for number, (norm, group) in enumerate(zip(norms, groups, strict=True)):
            tokens = assembler.projections[number](norm(group.tokens)) + assembler.stage_embeddings[number]
            entered.append(MaskedGroup(tokens, group.mask))
        # The class token has a row of zeros in the position table, as in the published code.
        x = restore_tokens(entered) + F.pad(assembler.position, (0, 0, 1, 0))
        for block in assembler.blocks:
            assert isinstance(block, Block)
            x = plain_block(block, x)
        result: Tensor = assembler.out_linear(assembler.out_norm(x[:, 1:]))
        return result
