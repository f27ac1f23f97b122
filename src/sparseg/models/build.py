"""Build a segmenter from a preset name or from stored settings."""

from __future__ import annotations

from typing import Any

from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset
from sparseg.models.segmenter import SparseUNETR


def build_segmenter(name: str, **overrides: Any) -> SparseUNETR:
    """Build a named model, e.g. `build_segmenter("btcv")` or `build_segmenter("vit_tiny_p8", num_classes=3)`.

    Raises:
        ConfigError: unknown preset or setting.
    """
    return SparseUNETR(**{**preset(name), **overrides})


def segmenter_from_config(config: SegmenterConfig) -> SparseUNETR:
    """Build the model that `config` describes."""
    return SparseUNETR(**config.model_dump())
