"""Stored values of a seeded model: they fail when a result changes, on purpose or not.

If a change of results is meant, say so in the CHANGELOG and store the new values printed by the failure.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sparseg.models.build import build_segmenter
from sparseg.models.config import PUBLISHED_OPTIONS
from sparseg.models.segmenter import SparseUNETR

PLACES = [(0, 0, 0, 0), (1, -1, -1, -1), (2, 7, 8, 3), (0, 3, 12, 9), (1, 10, 2, 14)]

GOLDEN: dict[str, tuple[dict[str, Any], list[float], list[int]]] = {
    "default": ({}, [6.218187, -0.048068, 0.327417, 0.784577, -0.399478], [6, 9, 22, 25, 41, 44, 47, 63]),
    "published": (
        dict(PUBLISHED_OPTIONS),
        [5.315639, -0.032571, -0.056209, -1.090746, -0.197887],
        [6, 9, 22, 25, 41, 44, 47, 63],
    ),
    "dense": (
        {"pruning_stages": ()},
        [1.808164, -0.321629, -0.814139, -1.84255, 0.662212],
        list(range(64)),
    ),
    "thick_slices": (
        {"patch_size": (8, 8, 4), "class_token": False, "keep_ratio": 0.3},
        [-0.794713, 0.068078, -0.046936, 3.246524, -0.857601],
        [1],
    ),
    "odd_grid": (
        {"roi_size": (12, 20, 28)},
        [5.07656, -1.171751, 0.569137, 0.146294, -0.489953],
        [24, 25, 27, 38, 41, 63, 66, 69, 78, 79, 81, 82, 84],
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
            fan_in = 4 if name.endswith(("pos_embed", "cls_token")) else fan_in
            parameter.copy_(wave * 1.4 / fan_in**0.5 + (1.0 if name.endswith("norm.weight") else 0.0))
    return net.double()


def image(size: tuple[int, int, int]) -> torch.Tensor:
    values = torch.arange(math.prod(size), dtype=torch.float64)
    return (torch.sin(values * 0.5698402909 * 11) + torch.cos(values / 97)).reshape(1, 1, *size)


@pytest.mark.parametrize("name", GOLDEN)
def test_values_have_not_drifted(name: str) -> None:
    options, logits, survivors = GOLDEN[name]
    with torch.no_grad():
        net = filled(options)
        output = net(image(net.config.roi_size), return_stages=True)
    found = [float(output.logits[(0, *place)]) for place in PLACES]
    assert output.stages[-1].indices[0].tolist() == survivors
    assert torch.allclose(torch.tensor(found), torch.tensor(logits), rtol=0, atol=1e-4), found
