"""Build a network from a preset name or from stored settings."""

from __future__ import annotations

from typing import Any

from sparseg.models.network import Network, NetworkConfig
from sparseg.models.peer_config import PeerConfig
from sparseg.models.peers import PeerNet
from sparseg.models.presets import preset
from sparseg.models.segmenter import SparseUNETR


def build_segmenter(name: str, **overrides: Any) -> Network:
    """Build a named model, e.g. `build_segmenter("btcv")` or `build_segmenter("vit_tiny_p8", num_classes=3)`.

    Returns:
        A `SparseUNETR`; a `PeerNet` for the presets `peer_*`.

    Raises:
        ConfigError: unknown preset or setting.
    """
    values = {**preset(name), **overrides}
    return PeerNet(**values) if "network" in values else SparseUNETR(**values)


def segmenter_from_config(config: NetworkConfig) -> Network:
    """Build the model that `config` describes."""
    values = config.model_dump()
    return PeerNet(**values) if isinstance(config, PeerConfig) else SparseUNETR(**values)
