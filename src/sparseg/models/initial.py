"""Initial weights: drawn part by part from a seed and the part's name.

One generator for a whole network gives other weights to the decoder as soon as the encoder has one layer
more. Drawn by name, parts that two models share start alike, so that a comparison of the models with one seed
is a paired one.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_STD = 0.02


def init_like_vit(module: nn.Module) -> None:
    """Truncated normal (0.02) for all Linear layers, zero biases, as ViT does.

    Convolutions keep torch's default.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=_STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters():
        if name.endswith("cls_token"):
            nn.init.trunc_normal_(parameter, std=_STD)


def draw_by_name(net: nn.Module, seed: int) -> None:
    """Draw all random weights anew, from the distributions that building the network draws them from.

    Layers of one name and shape get one and the same weights in every network of a seed. Torch's global
    generator is left as it was.

    Args:
        net: Its layers are torch's; parameters that are no layer's are tokens and embeddings (standard
            deviation 0.02) or a table of positions, which is not random.
        seed: Of all weights.
    """
    with torch.random.fork_rng(devices=[]):
        for name, part in net.named_modules():
            if hasattr(part, "reset_parameters"):
                torch.manual_seed(seed_of(seed, name))
                part.reset_parameters()
                init_like_vit(part)
        for name, parameter in net.named_parameters():
            torch.manual_seed(seed_of(seed, name))
            if name.endswith("cls_token"):
                nn.init.trunc_normal_(parameter, std=_STD)
            elif name.endswith("mask_token") or "stage_embeddings." in name:
                nn.init.normal_(parameter, std=_STD)


def seed_of(seed: int, name: str) -> int:
    """A generator's seed for a part of a network; the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
