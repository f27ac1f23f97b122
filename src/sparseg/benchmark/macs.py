"""Multiply-accumulates of one forward pass or training step, attention included. 1 MAC = 2 FLOPs.

Counted by torch's flop counter on the meta device: no arithmetic is done, and fused attention shows up as
its two matrix products, which the counter does not see on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sparseg.benchmark.variants import build_variant, plain_name
from sparseg.models.config import SegmenterConfig


def count_macs(
    name: str, config: SegmenterConfig, *, batch: int = 1, mode: str = "inference"
) -> tuple[int, dict[str, int]]:
    """Count one variant.

    Args:
        name: One of `VARIANTS`, `RIVALS` or `PEERS`; what of it is compiled does not count.
        config: Settings of the sparse model.
        batch: B.
        mode: "inference" counts the forward pass, "training" forward and backward.

    Returns:
        MACs in all, and of the forward pass alone by part (encoder, assembly, decoder; or network).
        Norms, activations, pooling, loss and optimiser are not counted.
    """
    # Boolean masks have no size on the meta device. The plain implementation multiplies the same matrices
    # as the sparse model, which a test confirms on real tensors.
    name = plain_name(name)
    variant = build_variant("sparse" if name == "naive_sparse" else name, config)
    net = variant.net.to("meta").train(mode == "training")
    image = torch.empty(batch, config.in_channels, *config.roi_size, device="meta")
    with FlopCounterMode(display=False) as forward:
        logits = net(image)
    total = forward.get_total_flops()
    if mode == "training":
        with FlopCounterMode(display=False) as backward:
            logits.mean().backward()
        total += backward.get_total_flops()
    parts = _parts(forward, net, variant.encoder)
    return total // 2, {part: flops // 2 for part, flops in parts.items()}


def _parts(counter: FlopCounterMode, net: torch.nn.Module, encoder: torch.nn.Module | None) -> dict[str, int]:
    if encoder is None:
        return {"network": counter.get_total_flops()}
    names = {id(module): name for name, module in net.named_modules()}
    counts: dict[str, dict[Any, int]] = counter.get_flop_counts()
    root = type(net).__name__

    def flops(module_name: str) -> int:
        return sum(counts.get(f"{root}.{module_name}", {}).values())

    parts = {"encoder": flops(names[id(encoder)]), "assembly": flops("assembler")}
    return {**parts, "decoder": counter.get_total_flops() - sum(parts.values())}
