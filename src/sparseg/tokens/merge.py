"""Token merging (ToMe: Bolya et al., ICLR 2023): alike tokens become one instead of some being removed.

Every block merges a fixed number of tokens, chosen by bipartite soft matching on the keys of its attention
(section 3 of the paper). A merged token is the average of its members, weighted by the number of patches each
stands for, and attention counts it as often (eq. 1). Afterwards every patch gets a copy of the token it
became part of.

Shapes: n tokens before a merge, m = n - r after it; d width of a key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Matching(NamedTuple):
    """Which tokens of a sequence become one.

    Attributes:
        kept: `[B, m]` positions that remain, ascending.
        target: `[B, n]` position, before the merge, of the token that each one goes to; its own where it
            remains.
    """

    kept: Tensor
    target: Tensor


class MergedTokens(NamedTuple):
    """Tokens that stand for several patches.

    Attributes:
        tokens: `[B, m, E]`, in ascending order of the position that gave each its place.
        sizes: `[B, m]`, patches each stands for; they sum to L.
        members: `[B, L]` int64, for each patch of the grid the token that it is part of, 0..m-1.
    """

    tokens: Tensor
    sizes: Tensor
    members: Tensor


def unmerged(tokens: Tensor) -> MergedTokens:
    """Every token by itself, from `[B, L, E]`."""
    batch, length, _ = tokens.shape
    members = torch.arange(length, device=tokens.device).expand(batch, length)
    # Sizes stay float32: they are counts, and half precision holds them only up to 256.
    return MergedTokens(tokens, torch.ones(batch, length, device=tokens.device), members)


def match_tokens(keys: Tensor, num_merge: int) -> Matching:
    """Bipartite soft matching: the tokens in turn form sets A and B; the r closest pairs of them merge.

    Each token of A is joined to the token of B of the highest cosine similarity; of these edges the r best
    are merged, so several tokens of A may meet in one of B, and none of B in another one.

    Args:
        keys: `[B, n, d]`, mean over heads; without the class token, which is never merged.
        num_merge: r, at most the size of A, ceil(n/2); 0 where n is 1.
    """
    keys = F.normalize(keys.detach().float(), dim=-1)
    batch, n, _ = keys.shape
    everyone = torch.arange(n, device=keys.device).expand(batch, n)
    if num_merge == 0:
        return Matching(everyone, everyone)
    similarity, partner = (keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)).max(dim=2)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    merged, stays = order[:, :num_merge], order[:, num_merge:]
    # Position i of A is position 2i of the sequence, position j of B is 2j + 1.
    target = everyone.scatter(1, 2 * merged, 2 * partner.gather(1, merged) + 1)
    kept = torch.cat((2 * stays, everyone[:, 1::2]), dim=1).sort(dim=1).values
    return Matching(kept, target)


def merge_tokens(present: MergedTokens, matching: Matching) -> MergedTokens:
    """Average the tokens that become one, weighted by size; the sizes add up."""
    kept, target = matching
    weight = present.sizes.unsqueeze(-1).to(present.tokens.dtype)
    index = target.unsqueeze(-1).expand_as(present.tokens)
    sums = torch.zeros_like(present.tokens).scatter_add(1, index, present.tokens * weight)
    sizes = torch.zeros_like(present.sizes).scatter_add(1, target, present.sizes).gather(1, kept)
    sums = sums.gather(1, kept.unsqueeze(-1).expand(-1, -1, sums.shape[2]))
    # `kept` is ascending, so the place of a remaining position in it is the number of smaller ones there.
    places = torch.searchsorted(kept.contiguous(), target.contiguous())
    return MergedTokens(sums / sizes.unsqueeze(-1).to(sums.dtype), sizes, places.gather(1, present.members))


def size_bias(sizes: Tensor) -> Tensor:
    """What proportional attention adds to the products with each key: log size (eq. 1)."""
    return sizes.log()


def unmerge_tokens(present: MergedTokens) -> Tensor:
    """Give each patch a copy of its token -> `[B, L, E]` in grid order."""
    index = present.members.unsqueeze(-1).expand(-1, -1, present.tokens.shape[2])
    return present.tokens.gather(1, index)
