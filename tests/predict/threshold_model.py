"""A model folder whose network reads the class off the intensity, so that every label has a right answer.

Class c of a phantom has mean intensity 100 c. The CT mapping is linear over all classes, and the logits are
linear in intensity, so that interpolating logits is classifying the interpolated intensity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import save_model
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig

LOWEST, HIGHEST = -100.0, 300.0
NAMES = {0: "background", 1: "liver", 2: "tumor"}
BRATS = {"whole tumour": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


def tiny_preprocess(**changes: Any) -> PreprocessConfig:
    """Return the phantom's preprocessing: own spacing, crop to what is above 50."""
    values = {"intensity": CTIntensity(clip=(LOWEST, HIGHEST)), "foreground_threshold": 50.0}
    return PreprocessConfig(**{**values, **changes})


def tiny_card(net: SparseUNETR, **changes: Any) -> ModelCard:
    """Return a card for `net`; changes to the preprocessing or to `channels`, `labels`, `regions`."""
    own = {name: changes.pop(name) for name in ("channels", "labels", "regions") if name in changes}
    values = {"channels": ("CT",), "labels": NAMES, "preprocess": tiny_preprocess(**changes)}
    return ModelCard(model=net.config, **{**values, **own})


def tiny_net(**overrides: Any) -> SparseUNETR:
    """Return the smallest network, with seeded weights."""
    torch.manual_seed(0)
    return build_segmenter("test_tiny", **overrides).eval()


def save_tiny_model(folder: Path, **changes: Any) -> Path:
    """Write a model folder."""
    net = tiny_net()
    save_model(folder, net, tiny_card(net, **changes))
    return folder


def classify(net: SparseUNETR, image: Tensor) -> Tensor:
    """Stand in for `SparseUNETR.forward`: logits whose argmax is the class of the nearest mean intensity."""
    intensity = (image[:, :1] + 1) / 2 * (HIGHEST - LOWEST) + LOWEST
    centres = 100.0 * torch.arange(net.config.num_classes).reshape(1, -1, 1, 1, 1)
    return 1e-3 * (2 * intensity * centres - centres**2)


def exceed(net: SparseUNETR, image: Tensor) -> Tensor:
    """Stand in with overlapping regions: region k is present above intensity 50 + 100 k."""
    intensity = (image[:, :1] + 1) / 2 * (HIGHEST - LOWEST) + LOWEST
    borders = 50 + 100.0 * torch.arange(net.config.num_classes).reshape(1, -1, 1, 1, 1)
    return 1e-2 * (intensity - borders)


def threshold_predictor(
    patch: pytest.MonkeyPatch, settings: PredictSettings | None = None, **changes: Any
) -> Predictor:
    """Return a predictor that classifies by intensity."""
    patch.setattr(SparseUNETR, "forward", classify)
    net = tiny_net()
    return Predictor(net, tiny_card(net, **changes), settings)
