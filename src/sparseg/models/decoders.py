"""Which decoder a model has, as the settings say."""

from __future__ import annotations

from sparseg.models.config import SegmenterConfig
from sparseg.models.decoder import UNETRDecoder
from sparseg.models.half_decoder import HalfResolutionDecoder


def make_decoder(config: SegmenterConfig) -> UNETRDecoder | HalfResolutionDecoder:
    """Build the decoder of a model."""
    kind = UNETRDecoder if config.decoder == "unetr" else HalfResolutionDecoder
    return kind(
        config.in_channels,
        config.num_classes,
        config.embed_dim,
        feature_size=config.feature_size,
        patch_size=config.patch_size,
        deep_supervision=config.deep_supervision,
    )
