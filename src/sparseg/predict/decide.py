"""From logits to label ids: exclusive classes by argmax, overlapping regions by threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


def make_decision(
    labels: Iterable[int], regions: Mapping[str, tuple[int, ...]]
) -> Callable[[Tensor], Tensor]:
    """Return logits `[K, ...]` -> ids `[...]`.

    Without regions it is the argmax over classes; class number c is the c-th of the ids in ascending order.
    With regions every channel is present where its logit is positive (probability above one half), and the
    regions are painted from the largest to the smallest: each with the id it has and the smaller regions
    inside it have not (BraTS: whole tumour, then core, then enhancing tumour).
    """
    if not regions:
        table = torch.tensor(sorted(labels))
        return lambda logits: table[logits.argmax(dim=0).cpu()]
    order = paint_order(regions)

    def decide(logits: Tensor) -> Tensor:
        ids = torch.zeros(logits.shape[1:], dtype=torch.int64)
        for channel, label in order:
            ids[logits[channel] > 0] = label
        return ids

    return decide


def paint_order(regions: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int]]:
    """(channel, id to paint) from the largest region to the smallest."""
    members = [set(ids) for ids in regions.values()]
    channels = sorted(range(len(members)), key=lambda channel: -len(members[channel]))
    order = []
    for channel in channels:
        inside = [other for other in members if other < members[channel]]
        own = members[channel].difference(*inside) or members[channel]
        order.append((channel, min(own)))
    return order
