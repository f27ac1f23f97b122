"""Whatever is switched on, every parameter receives a gradient in every step, as several processes need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sparseg.models.build import build_segmenter
from sparseg.models.config import PUBLISHED_OPTIONS
from sparseg.models.segmenter import SparseUNETR
from sparseg.training.losses import make_loss
from sparseg.training.selection import patch_targets, score_loss, selection_at, wanted_patches
from sparseg.training.selection_config import SelectionConfig

SCHEDULES = {"budget_exact": {}, "paper": PUBLISHED_OPTIONS}
EVERYTHING = SelectionConfig(temperature_start=2.0, warmup_share=0.5, score_weight=0.5, protect_min_patches=3)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(2, 1, 16, 16, 16)
    label[:, :, 2:9, 3:12, 4:16] = 1
    label[0, :, 12:14, 12:14, 12:14] = 2
    return torch.randn(2, 1, 16, 16, 16, generator=generator), label


def step(net: SparseUNETR, config: SelectionConfig, progress: float) -> float:
    """Loss and gradients of one training step."""
    image, label = batch()
    net.zero_grad()
    selection = selection_at(config, net.config, progress, label)
    logits, _, decided = net(image, return_selection=True, selection=selection)
    loss = torch.zeros(())
    for one in logits if isinstance(logits, list) else [logits]:
        loss = loss + make_loss(regions=False)(one, F.interpolate(label, one.shape[2:], mode="nearest"))
    if config.score_weight:
        targets = patch_targets(label, net.config.patch_size, net.config.num_classes)
        wanted = wanted_patches(targets, config.score_target)
        loss = loss + config.score_weight * score_loss(decided, wanted, net.config.temperature)
    loss.backward()
    return float(loss.detach())


def predictor_gradients(net: SparseUNETR) -> list[float]:
    """Largest gradient at the last weight of each stage's predictor."""
    named = dict(net.named_parameters())
    grads = [named[f"encoder.prunings.{i}.predictor.out_mlp.4.weight"].grad for i in range(3)]
    return [float(grad.abs().max()) for grad in grads if grad is not None]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("selection", [SelectionConfig(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("progress", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", [{}, {"deep_supervision": 2}, {"class_token": False, "skips": "shared"}])
def test_every_parameter_gets_a_finite_gradient(
    schedule: str, selection: SelectionConfig, progress: float, recompute: bool, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", **{**SCHEDULES[schedule], **options}).train()
    net.set_activation_checkpointing(recompute)
    assert torch.tensor(step(net, selection, progress)).isfinite()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_predictor_learns_from_the_segmentation_alone(schedule: str) -> None:
    torch.manual_seed(2)
    net = build_segmenter("test_tiny", **SCHEDULES[schedule]).train()
    step(net, SelectionConfig(), 0.5)
    assert min(predictor_gradients(net)) > 0


def test_a_warm_up_that_prunes_nothing_teaches_scores_through_the_score_loss_only() -> None:
    torch.manual_seed(3)
    net = build_segmenter("test_tiny").train()
    step(net, SelectionConfig(warmup_share=1.0), 0.0)
    assert predictor_gradients(net) == [0.0, 0.0, 0.0]
    step(net, SelectionConfig(warmup_share=1.0, score_weight=1.0), 0.0)
    assert min(predictor_gradients(net)) > 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_lowers_the_loss_while_sparsity_grows(schedule: str) -> None:
    torch.manual_seed(4)
    net = build_segmenter("test_tiny", **SCHEDULES[schedule]).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for number in range(30):
        losses.append(step(net, EVERYTHING, number / 30))
        optimizer.step()
    assert torch.tensor(losses).isfinite().all()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
