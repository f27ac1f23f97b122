"""Sizes of the named models. Nowhere else in the package is a model's size written down."""

from __future__ import annotations

from typing import Any

from sparseg.errors import ConfigError
from sparseg.models.config import FAST_OPTIONS, PUBLISHED_OPTIONS

_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}

PRESETS: dict[str, dict[str, Any]] = {
    # For tests: runs in milliseconds, has every part of the method.
    "test_tiny": {
        "num_classes": 3,
        "roi_size": (16, 16, 16),
        "patch_size": 4,
        "embed_dim": 24,
        "depth": 4,
        "num_heads": 2,
        "feature_size": 4,
        "pruning_stages": (1, 2, 3),
        "keep_ratio": 0.5,
    },
    "vit_tiny_p8": {**_TINY, "patch_size": 8, "keep_ratio": 0.25},
    "vit_small_p8": {**_SMALL, "patch_size": 8, "keep_ratio": 0.25},
    "vit_base_p8": {**_BASE, "patch_size": 8, "keep_ratio": 0.25},
    "vit_base_p16": {**_BASE, "patch_size": 16, "pruning_stages": ()},
    # Beyond the paper: several times faster, in training too.
    "fast_tiny_p8": {**_TINY, **FAST_OPTIONS, "patch_size": 8},
    "fast_small_p8": {**_SMALL, **FAST_OPTIONS, "patch_size": 8},
    "fast_base_p8": {**_BASE, **FAST_OPTIONS, "patch_size": 8},
    # The plain ViT of Primus (Wald et al. 2025, size S), made sparse; dense with `pruning_stages=[]`.
    "primus_s_p8": {
        "embed_dim": 396,
        "depth": 12,
        "num_heads": 6,
        "patch_size": 8,
        "block": "eva",
        "mlp_ratio": 8 / 3,
        "norm_eps": 1e-5,
        "class_token": False,
        "decoder": "light",
        "keep_ratio": 0.25,
    },
    # The paper's settings (table in its section 4): 14 classes of abdominal CT; three tumour regions in
    # 4-channel MR.
    "btcv": {
        **_BASE,
        **PUBLISHED_OPTIONS,
        "num_classes": 14,
        "patch_size": 8,
        "keep_ratio": 0.1,
        "drop_path": 0.1,
    },
    "brats": {
        **_BASE,
        **PUBLISHED_OPTIONS,
        "in_channels": 4,
        "num_classes": 3,
        "roi_size": (128, 128, 128),
        "patch_size": 8,
        "keep_ratio": 0.25,
    },
    # Peers from MONAI in the sizes their authors published: 92.8, 62.2, 18.8, 31.2 and 5.6 million weights.
    "peer_unetr16": {
        "network": "unetr16",
        "feature_size": 16,
        "embed_dim": 768,
        "num_heads": 12,
    },
    "peer_swin_unetr": {"network": "swin_unetr", "feature_size": 48},
    "peer_segresnet": {"network": "segresnet", "feature_size": 32},
    "peer_dynunet": {"network": "dynunet", "feature_size": 32, "num_levels": 6},
    "peer_mednext": {"network": "mednext_s", "feature_size": 32},
    # Small ones for the CPU: 7.0, 4.1, 1.2, 0.35 and 0.37 million weights.
    "peer_unetr16_tiny": {
        "network": "unetr16",
        "roi_size": (64, 64, 64),
        "feature_size": 8,
        "embed_dim": 192,
        "num_heads": 3,
    },
    "peer_swin_unetr_tiny": {"network": "swin_unetr", "roi_size": (64, 64, 64), "feature_size": 12},
    "peer_segresnet_tiny": {"network": "segresnet", "roi_size": (64, 64, 64), "feature_size": 8},
    "peer_dynunet_tiny": {
        "network": "dynunet",
        "roi_size": (64, 64, 64),
        "feature_size": 8,
        "num_levels": 4,
    },
    "peer_mednext_tiny": {"network": "mednext_s", "roi_size": (64, 64, 64), "feature_size": 8},
}


def preset(name: str) -> dict[str, Any]:
    """Return the settings of a named model, to be given to `SparseUNETR`, of peers to `PeerNet`.

    Raises:
        ConfigError: unknown name; the message lists the known ones.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"a preset must be one of {', '.join(PRESETS)}",
            received=repr(name),
            remedy="choose one",
            where="preset",
        )
    return dict(PRESETS[name])
