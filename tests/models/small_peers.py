"""The smallest sizes of the peers that train, for tests."""

from __future__ import annotations

from typing import Any

import torch

from sparseg.models.peers import PeerNet

PEERS: dict[str, dict[str, Any]] = {
    "unetr16": {"roi_size": (32, 16, 16), "feature_size": 2, "embed_dim": 24, "num_heads": 2},
    "swin_unetr": {"roi_size": (64, 32, 32), "feature_size": 12},
    "segresnet": {"roi_size": (16, 16, 16), "feature_size": 8},
    "dynunet": {"roi_size": (16, 16, 16), "feature_size": 2, "num_levels": 3},
    "mednext_s": {"roi_size": (32, 16, 16), "feature_size": 2},
}


def small_peer(network: str, **changes: Any) -> PeerNet:
    """A peer with 2 channels and 3 classes, seeded."""
    torch.manual_seed(0)
    values = {"network": network, "in_channels": 2, "num_classes": 3, **PEERS[network], **changes}
    return PeerNet(**values)


def window(net: PeerNet, batch: int = 1) -> torch.Tensor:
    """A seeded batch `[B, C, *roi]`."""
    shape = (batch, net.config.in_channels, *net.config.roi_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
