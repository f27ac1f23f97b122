"""The tokens that run through the encoder's blocks: patches, class token, and what pruned ones became."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseg.layers.attention import class_attention
from sparseg.layers.recompute import run_part
from sparseg.layers.rotary import take_places
from sparseg.tokens.merge import MergedTokens, match_tokens, merge_tokens, size_bias
from sparseg.tokens.stages import StageTokens


class TokenSequence(NamedTuple):
    """What enters a block.

    Attributes:
        present: Patch tokens.
        class_token: `[B, 1, E]` or None; goes first.
        fused: `[B, 1, E]` or None, the token that pruned ones were fused into; goes last.
        attention: `[B, n]` or None, attention of the class token to the patch tokens in the block before.
        fused_attention: `[B, 1]` or None, its attention to the fused token.
    """

    present: StageTokens
    class_token: Tensor | None
    fused: Tensor | None = None
    attention: Tensor | None = None
    fused_attention: Tensor | None = None


def run_block(
    block: nn.Module,
    sequence: TokenSequence,
    *,
    recompute: bool,
    wants_attention: bool = False,
    rotary: Tensor | None = None,
) -> TokenSequence:
    """Run one block over all tokens of the sequence.

    Args:
        block: A transformer block.
        sequence: Its input.
        recompute: See `run_part`.
        wants_attention: Whether a pruning stage behind the block asks for the attention of the class token.
        rotary: Table of rotary positions of the full grid (`sparseg.layers.rotary`), or None.
    """
    present, class_token, fused = sequence[:3]
    parts = [part for part in (class_token, present.tokens, fused) if part is not None]
    x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    start, n = 0 if class_token is None else 1, present.tokens.shape[1]
    keep = _keep_mask(present.weight, start)
    places = None
    if rotary is not None:
        places = take_places(rotary, present.indices, before=start, after=int(fused is not None))
    attention = None
    if wants_attention:
        x, attention = run_part(
            block, x, recompute=recompute, keep=keep, places=places, between=_note_class_attention
        )
    else:
        x = run_part(block, x, recompute=recompute, keep=keep, places=places)
    return TokenSequence(
        StageTokens(x[:, start : start + n], present.indices, weight=present.weight),
        x[:, :1] if start else None,
        None if fused is None else x[:, start + n :],
        None if attention is None else attention[:, :n],
        None if attention is None or fused is None else attention[:, n:],
    )


def _keep_mask(weight: Tensor | None, num_extra: int) -> Tensor | None:
    """Weights of the patch tokens with the class token in front, which is always there."""
    if weight is None or not num_extra:
        return weight
    return torch.cat((weight.new_ones(weight.shape[0], num_extra), weight), dim=1)


def _note_class_attention(x: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return x, class_attention(q, k)


def run_merging_block(
    block: nn.Module, present: MergedTokens, class_token: Tensor | None, num_merge: int, *, recompute: bool
) -> tuple[MergedTokens, Tensor | None]:
    """Run one block that merges `num_merge` patch tokens away between attention and MLP (ToMe).

    Args:
        block: A transformer block.
        present: Patch tokens.
        class_token: `[B, 1, E]` or None; stands for one patch and is never merged.
        num_merge: r.
        recompute: See `run_part`.
    """
    x, bias = present.tokens, size_bias(present.sizes)
    if class_token is not None:
        x = torch.cat((class_token, x), dim=1)
        bias = torch.cat((bias.new_zeros(bias.shape[0], 1), bias), dim=1)
    num_extra = x.shape[1] - present.tokens.shape[1]
    merge = partial(
        _merge, sizes=present.sizes, members=present.members, num_merge=num_merge, num_extra=num_extra
    )
    x, sizes, members = run_part(block, x, recompute=recompute, bias=bias, between=merge)
    return MergedTokens(x[:, num_extra:], sizes, members), x[:, :1] if num_extra else None


def _merge(
    x: Tensor, _: Tensor, k: Tensor, *, sizes: Tensor, members: Tensor, num_merge: int, num_extra: int
) -> tuple[Tensor, ...]:
    matching = match_tokens(k[:, :, num_extra:].mean(dim=1), num_merge)
    merged = merge_tokens(MergedTokens(x[:, num_extra:], sizes, members), matching)
    return torch.cat((x[:, :num_extra], merged.tokens), dim=1), merged.sizes, merged.members
