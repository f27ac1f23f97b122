"""What training, prediction and benchmarks ask of every network, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparseg.config import parse_config
from sparseg.models.config import SegmenterConfig
from sparseg.models.peer_config import PeerConfig
from sparseg.tokens.stages import StageScores

NetworkConfig = SegmenterConfig | PeerConfig


class Network(nn.Module):
    """Windows `[B, C, H, W, D]` -> logits `[B, K, H, W, D]`.

    Attributes:
        config: Settings that it can be built from again.
    """

    config: NetworkConfig

    def token_counts(
        self, size: Sequence[int] | None = None, keep_ratios: tuple[float, ...] | None = None
    ) -> list[int]:
        """Patch tokens at the start and after each pruning stage; empty where there are no patch tokens.

        Args:
            size: Window in voxels; None takes the roi.
            keep_ratios: One per pruning stage in place of the model's.
        """
        raise NotImplementedError

    def parts(self) -> dict[str, nn.Module | None]:
        """The modules that a call runs one after the other: `encode`, `assemble`, `decode`.

        None where there is none; a network that is not made of such parts is `decode` as a whole.
        """
        raise NotImplementedError

    def blocks(self) -> list[nn.Module]:
        """The repeated parts, which are compiled, shared out and computed again one by one."""
        raise NotImplementedError

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Compute activations again in the backward pass instead of keeping them; training only.

        Loss and gradients stay the same; memory falls and a step takes longer. Like `train()` it belongs to
        the module in memory, not to the settings that are stored with it.
        """
        raise NotImplementedError

    def with_decisions(self, image: Tensor) -> tuple[Tensor, list[StageScores]]:
        """Logits, and what each pruning stage decided: nothing in a dense network."""
        logits: Tensor = self(image)
        return logits, []


def parse_network(values: Mapping[str, Any], *, where: object = "") -> NetworkConfig:
    """Settings of a network, told apart by `network`, which only those of a peer have.

    Raises:
        ConfigError: an unknown setting, or one out of range.
    """
    kind: type[SegmenterConfig] | type[PeerConfig] = PeerConfig if "network" in values else SegmenterConfig
    return parse_config(kind, values, where=where)
