"""Which decoder a model has, as the settings say."""

from __future__ import annotations

from sparseg.models.config import SegmenterConfig
from sparseg.models.decoder import UNETRDecoder
from sparseg.models.half_decoder import HalfResolutionDecoder
from sparseg.models.light_decoder import LightDecoder

Decoder = UNETRDecoder | HalfResolutionDecoder | LightDecoder
_KINDS: dict[str, type[Decoder]] = {
    "unetr": UNETRDecoder,
    "half_resolution": HalfResolutionDecoder,
    "light": LightDecoder,
}


def make_decoder(config: SegmenterConfig) -> Decoder:
    """Build the decoder of a model."""
    return _KINDS[config.decoder](
        config.in_channels,
        config.num_classes,
        config.embed_dim,
        feature_size=config.feature_size,
        patch_size=config.patch_size,
        deep_supervision=config.deep_supervision,
    )
