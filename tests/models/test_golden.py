"""Stored values of a seeded model: they fail when a result changes, on purpose or not.

If a change of results is meant, say so in the CHANGELOG and store the new values printed by the failure.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparseg.models.build import build_segmenter
from sparseg.models.config import PUBLISHED_OPTIONS
from sparseg.models.segmenter import SparseUNETR

PLACES = [(0, 0, 0, 0), (1, 15, 15, 15), (2, 7, 8, 3), (0, 3, 12, 9), (1, 10, 2, 14)]

GOLDEN: dict[str, tuple[dict[str, Any], list[float], list[int]]] = {
    "default": ({}, [6.082563, -0.046374, -0.420443, 0.503898, -0.071394], [3, 5, 6, 18, 21, 22, 25, 49]),
    "published": (
        dict(PUBLISHED_OPTIONS),
        [5.261331, -0.045309, -0.206154, -0.574524, -0.601581],
        [3, 5, 6, 18, 21, 22, 25, 49],
    ),
    "dense": (
        {"pruning_stages": ()},
        [1.797684, -0.239988, -0.52889, -1.817725, 0.65429],
        list(range(64)),
    ),
    "thick_slices": (
        {"patch_size": (8, 8, 4), "class_token": False, "keep_ratio": 0.3},
        [-0.903964, 0.044876, 0.200612, 2.53046, -0.579111],
        [1],
    ),
}


def filled(options: dict[str, Any]) -> SparseUNETR:
    """The tiny model with weights that depend on no random generator, which may change between versions.

    In double precision, since the last token kept and the first one pruned may score nearly alike.
    """
    net = build_segmenter("test_tiny", **options).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(net.named_parameters()):
            values = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(values * 27.93 + number).reshape(parameter.shape)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(wave * 1.4 / fan_in**0.5 + (1.0 if name.endswith("norm.weight") else 0.0))
    return net.double()


def image() -> torch.Tensor:
    values = torch.arange(16**3, dtype=torch.float64)
    return (torch.sin(values * 0.5698402909 * 11) + torch.cos(values / 97)).reshape(1, 1, 16, 16, 16)


@pytest.mark.parametrize("name", GOLDEN)
def test_values_have_not_drifted(name: str) -> None:
    options, logits, survivors = GOLDEN[name]
    with torch.no_grad():
        output = filled(options)(image(), return_stages=True)
    found = [float(output.logits[(0, *place)]) for place in PLACES]
    assert output.stages[-1].indices[0].tolist() == survivors
    assert torch.allclose(torch.tensor(found), torch.tensor(logits), rtol=0, atol=1e-4), found
