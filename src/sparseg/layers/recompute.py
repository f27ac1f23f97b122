"""Activation checkpointing: forget what lies inside a part, and compute it again in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_part(part: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """Run `part(*inputs)`.

    Args:
        part: A module that returns one tensor and changes nothing in itself.
        inputs: Its inputs.
        recompute: Keep only the inputs for the backward pass and run the part a second time there. Values and
            gradients are the same bit for bit, stochastic depth included; a training step takes about a third
            longer.
    """
    if recompute and part.training and torch.is_grad_enabled():
        result: Tensor = checkpoint(part, *inputs, use_reentrant=False)
        return result
    result = part(*inputs)
    return result
