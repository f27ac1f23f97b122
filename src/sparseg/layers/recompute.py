"""Activation checkpointing: forget what lies inside a part, and compute it again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_part(part: nn.Module, *inputs: Tensor, recompute: bool, **settings: Any) -> Any:
    """Run `part(*inputs, **settings)`.

    Args:
        part: A module that returns tensors and changes nothing in itself.
        inputs: Its inputs.
        settings: Its further arguments.
        recompute: Keep only the inputs for the backward pass and run the part a second time there. Values and
            gradients are the same bit for bit, stochastic depth included; a training step takes about a third
            longer.
    """
    if recompute and part.training and torch.is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False, **settings)
    return part(*inputs, **settings)
