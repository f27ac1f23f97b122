"""How much each voxel of a window counts where windows overlap."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sparseg.shapes import Triple

Importance = Literal["gaussian", "constant"]


def importance_map(roi: Triple, kind: Importance = "gaussian") -> Tensor:
    """Weights of one window.

    Args:
        roi: Window edges (H, W, D).
        kind: `gaussian` (standard deviation 1/8 of each edge, at least 1e-3, as in MONAI and nnU-Net) or
            `constant`.

    Returns:
        float32 `[H, W, D]`, all positive.
    """
    if kind == "constant":
        return torch.ones(roi)
    axes = []
    for edge in roi:
        x = torch.arange(edge, dtype=torch.float32) - (edge - 1) / 2
        axes.append(torch.exp(-(x**2) / (2 * (0.125 * edge) ** 2)))
    weights = torch.einsum("i,j,k->ijk", *axes)
    return weights.clamp_min(max(float(weights.min()), 1e-3))
