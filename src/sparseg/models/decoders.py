"""Which decoder a model has, as the settings say."""

from __future__ import annotations

from sparseg.models.config import SegmenterConfig
from sparseg.models.decoder import NUM_LEVELS, UNETRDecoder, require_two_voxels
from sparseg.models.half_decoder import HalfResolutionDecoder
from sparseg.models.light_decoder import LightDecoder
from sparseg.shapes import Triple

Decoder = UNETRDecoder | HalfResolutionDecoder | LightDecoder
_KINDS: dict[str, type[Decoder]] = {
    "unetr": UNETRDecoder,
    "half_resolution": HalfResolutionDecoder,
    "light": LightDecoder,
}


def require_window(decoder: Decoder, grid: Triple) -> None:
    """Refuse a window too small for a decoder, as its forward pass would.

    Args:
        decoder: From `make_decoder`.
        grid: Patches per axis of the window.

    Raises:
        ShapeError: a level with instance norm would hold a single voxel.
    """
    if isinstance(decoder, UNETRDecoder):
        require_two_voxels(grid, decoder.patch_size, NUM_LEVELS - 1)
    elif isinstance(decoder, HalfResolutionDecoder):
        require_two_voxels(grid, decoder.patch_size, decoder.bottom)


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
