"""Multiply-accumulates of a network, whoever made it, attention included. 1 MAC = 2 FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sparseg.models.network import Network


def count_macs(net: Network, *, batch: int = 1, training: bool = False) -> tuple[int, dict[str, int]]:
    """Count one pass without doing it.

    Args:
        net: On the meta device, where fused attention shows up as its two matrix products.
        batch: B.
        training: Forward and backward pass in training mode, else the forward pass in evaluation mode.

    Returns:
        MACs in all, and those of the forward pass by part (see `Network.parts`). Norms, activations, pooling,
        loss and optimiser are not counted.

    Raises:
        ShapeError: a window that the network cannot take.
    """
    net.train(training)
    image = torch.empty(batch, net.config.in_channels, *net.config.roi_size, device="meta")
    with FlopCounterMode(display=False) as forward:
        logits = net(image)
    total = forward.get_total_flops()
    if training:
        with FlopCounterMode(display=False) as backward:
            outputs = logits if isinstance(logits, list) else [logits]
            sum(output.mean() for output in outputs).backward()
        total += backward.get_total_flops()
    parts = _parts(net, forward.get_flop_counts(), forward.get_total_flops())
    return total // 2, {name: flops // 2 for name, flops in parts.items()}


def _parts(net: Network, counts: Mapping[str, Mapping[Any, int]], total: int) -> dict[str, int]:
    """FLOPs of each part but the last, which is the rest."""
    names = {id(module): name for name, module in net.named_modules()}
    root = type(net).__name__
    found = {}
    *first, last = [name for name, module in net.parts().items() if module is not None]
    for name in first:
        module = net.parts()[name]
        found[name] = sum(counts.get(f"{root}.{names[id(module)]}", {}).values())
    return {**found, last: total - sum(found.values())}
