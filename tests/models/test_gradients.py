"""Every parameter learns from the first training step on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparseg.models.build import build_segmenter
from sparseg.models.config import PUBLISHED_OPTIONS
from sparseg.training.losses import make_loss


@pytest.mark.parametrize(
    ("options", "num_silent"),
    [
        # The last bias of a score predictor shifts all scores alike, which no selection can notice.
        ({}, 3),
        ({"pruning_stages": ()}, 0),
        ({"class_token": False, "qkv_bias": False}, 3),
        ({"patch_size": (4, 4, 2), "assembly_dim": 12, "assembly_depth": 2}, 3),
        ({"skips": "shared"}, 3),
    ],
)
def test_every_parameter_gets_a_finite_gradient(options: dict[str, Any], num_silent: int) -> None:
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", **options).double().train()
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 1, 16, 16, 16, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 1, 16, 16, 16), generator=generator)
    make_loss(regions=False)(net(image), label).backward()
    silent = []
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if float(parameter.grad.abs().max()) <= 1e-12:
            silent.append(name)
    allowed = {f"encoder.prunings.{stage}.predictor.out_mlp.4.bias" for stage in range(num_silent)}
    assert set(silent) == allowed


def test_the_published_options_teach_the_predictor_far_less() -> None:
    """Gradient at the predictors: ours against the published options, same weights, same batch."""
    sizes = []
    for options in ({}, {**PUBLISHED_OPTIONS, "noise_scale": 0.0}):
        torch.manual_seed(2)
        net = build_segmenter("test_tiny", **options).train()
        generator = torch.Generator().manual_seed(3)
        image = torch.randn(2, 1, 16, 16, 16, generator=generator)
        label = torch.randint(0, 3, (2, 1, 16, 16, 16), generator=generator)
        make_loss(regions=False)(net(image), label).backward()
        weights = [p.grad for n, p in net.named_parameters() if "out_mlp.4.weight" in n]
        sizes.append(min(float(grad.abs().max()) for grad in weights if grad is not None))
    assert sizes[0] > 100 * sizes[1] > 0
