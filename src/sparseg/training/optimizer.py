"""AdamW parameter groups with layer-wise decay, and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sparseg.training.config import OptimizerConfig

# Of our encoder, or of the transformer in MONAI's UNETR.
_BLOCK = re.compile(r"^(?:encoder|net\.vit)\.(?:blocks|prunings)\.(\d+)\.")
_EMBED = ("encoder.patch_embed.", "encoder.cls_token", "encoder.pos_embed", "net.vit.patch_embedding.")
_TABLES = ("pos_embed", "cls_token", "relative_position_bias_table")


def layer_number(name: str, depth: int, pruning_stages: tuple[int, ...]) -> int:
    """Depth of a parameter for layer decay.

    0 embeddings, b + 1 block b, depth + 1 everything behind the blocks.
    """
    if name.startswith(_EMBED):
        return 0
    match = _BLOCK.match(name)
    if match is None:
        return depth + 1
    number = int(match.group(1))
    return (pruning_stages[number] if ".prunings." in name else number) + 1


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    depth: int,
    pruning_stages: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Group parameters by learning-rate factor and by whether weight decay applies (not to biases, norms.

    Tables).
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        layer = layer_number(name, depth, pruning_stages)
        decays = parameter.ndim > 1 and not name.endswith(_TABLES) and "embeddings" not in name
        factor = config.layer_decay ** (depth + 1 - layer)
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr": config.lr * factor,
                "lr_factor": factor,
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    net: nn.Module, config: OptimizerConfig, depth: int, stages: tuple[int, ...]
) -> torch.optim.AdamW:
    """AdamW over all parameters of `net`."""
    groups = parameter_groups(net.named_parameters(), config, depth, stages)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def learning_rate(config: OptimizerConfig, step: int, progress: float) -> float:
    """Learning rate before layer decay: linear warm-up over steps, then a cosine over progress.

    Args:
        config: Settings.
        step: Zero-based optimiser step.
        progress: Share of the run that is over, 0 to 1.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return config.lr * warm * (config.min_lr_share + (1 - config.min_lr_share) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its layer factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
