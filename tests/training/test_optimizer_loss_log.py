"""Parameter groups, the schedule, the losses by hand, and the log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sparseg.models.build import build_segmenter
from sparseg.training import log
from sparseg.training.config import OptimizerConfig
from sparseg.training.losses import make_loss
from sparseg.training.optimizer import (
    layer_number,
    learning_rate,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from sparseg.training.validate import validate
from training.toy import MemoryCase

STAGES = (1, 2, 3)


def test_every_parameter_is_in_exactly_one_group() -> None:
    net = build_segmenter("test_tiny")
    optimizer = make_optimizer(net, OptimizerConfig(layer_decay=0.5), 4, STAGES)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters()}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.pos_embed", 0),
        ("encoder.cls_token", 0),
        ("encoder.patch_embed.proj.weight", 0),
        ("encoder.blocks.0.norm1.weight", 1),
        ("encoder.blocks.3.mlp.fc2.bias", 4),
        ("encoder.blocks.11.attn.qkv.weight", 12),
        ("encoder.prunings.0.predictor.in_mlp.1.weight", 2),
        ("encoder.prunings.2.predictor.in_mlp.1.weight", 4),
        ("encoder.norm.weight", 5),
        ("assembler.blocks.0.norm1.weight", 5),
        ("decoder.out.conv.conv.weight", 5),
    ],
)
def test_layers(name: str, layer: int) -> None:
    assert layer_number(name, 4, STAGES) == layer


def test_factors_and_decay_of_each_parameter() -> None:
    net = build_segmenter("test_tiny")
    config = OptimizerConfig(lr=0.1, layer_decay=0.5, weight_decay=0.05)
    groups = parameter_groups(net.named_parameters(), config, 4, STAGES)
    of = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        group = of[id(parameter)]
        assert group["lr_factor"] == 0.5 ** (5 - layer_number(name, 4, STAGES))
        assert group["lr"] == pytest.approx(0.1 * group["lr_factor"])
        plain = name.endswith(("bias", "pos_embed", "cls_token")) or "norm" in name or "embeddings" in name
        plain = plain or "in_mlp.0." in name  # the predictor's LayerNorm
        assert group["weight_decay"] == (0.0 if plain else 0.05), name


def test_set_learning_rate_keeps_the_factors() -> None:
    net = build_segmenter("test_tiny")
    optimizer = make_optimizer(net, OptimizerConfig(layer_decay=0.5), 4, STAGES)
    set_learning_rate(optimizer, 2.0)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("step", "progress", "expected"),
    [
        (0, 0.0, 0.1),
        (4, 0.0, 0.5),
        (9, 0.0, 1.0),
        (50, 0.5, 0.01 + 0.99 * 0.5),
        (75, 0.75, 0.01 + 0.99 * 0.5 * (1 + math.cos(0.75 * math.pi))),
        (100, 1.0, 0.01),
        (100, 1.7, 0.01),
    ],
)
def test_learning_rate_warms_up_and_falls_on_a_cosine(step: int, progress: float, expected: float) -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=10, min_lr_share=0.01)
    assert learning_rate(config, step, progress) == pytest.approx(2.0 * expected, rel=1e-12)


def test_no_warm_up_starts_at_full_rate() -> None:
    assert learning_rate(OptimizerConfig(lr=2.0, warmup_steps=0), 0, 0.0) == 2.0


def test_class_loss_is_dice_plus_cross_entropy_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 2, 2, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 1, 3, 2, 2), generator=generator)
    p = logits.softmax(1)
    entropy = -p.gather(1, label).log().mean()
    dice = []
    for c in range(3):
        q, y = p[:, c], (label[:, 0] == c).double()
        dice.append(1 - 2 * (q * y).sum() / (q.square().sum() + y.square().sum() + 1e-6))
    expected = entropy + sum(dice) / 3
    assert float(make_loss(regions=False)(logits, label)) == pytest.approx(float(expected), rel=1e-9)


def test_region_loss_is_dice_with_squares_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 2, (2, 2, 3, 2, 2), generator=generator).double()
    values = []
    for b in range(2):
        for r in range(2):
            q, y = logits[b, r].sigmoid(), masks[b, r]
            values.append(1 - 2 * (q * y).sum() / (q.square().sum() + y.sum() + 1e-6))
    found = make_loss(regions=True)(logits, masks)
    assert float(found) == pytest.approx(float(sum(values)) / 4, rel=1e-9)


@pytest.mark.parametrize("regions", [True, False])
def test_losses_of_perfect_and_empty_targets(regions: bool) -> None:
    label = torch.zeros(1, 2 if regions else 1, 4, 4, 4)
    logits = torch.full((1, 2, 4, 4, 4), -20.0, requires_grad=True)
    loss = make_loss(regions=regions)(logits, label if regions else label.long())
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_validation_dice_by_hand() -> None:
    """An identity network on logits: one class half right, one absent everywhere, one only predicted."""
    label = torch.zeros(8, 8, 8).int().numpy()
    label[:4] = 1
    image = torch.zeros(4, 8, 8, 8)
    image[1, 2:6] = 1
    image[3, 7] = 1
    image[0] = 0.5

    class Identity(torch.nn.Module):
        config = build_segmenter("test_tiny", roi_size=8, patch_size=2).config

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    net = Identity().train()
    cases = [MemoryCase(image.numpy(), label[None])]
    found = validate(net, cases, regions={}, overlap=0.5, pad_value=0.0, device="cpu")  # type: ignore[arg-type]
    assert found[0] == pytest.approx(2 * 2 / (4 + 4))
    assert math.isnan(found[1])
    assert found[2] == 0.0
    assert net.training


def test_log_rows_come_back_and_nan_is_null(tmp_path: Path) -> None:
    rows = [
        {"kind": "train", "step": 1, "loss": 0.5},
        {"kind": "validation", "step": 1, "dice": {"a": float("nan"), "b": [float("inf"), 1]}},
    ]
    assert log.read(tmp_path) == []
    for row in rows:
        log.append(tmp_path, row)
    assert log.read(tmp_path) == [rows[0], {**rows[1], "dice": {"a": None, "b": [None, 1]}}]
    for line in (tmp_path / log.LOG).read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("cut", range(1, 45))
def test_a_cut_off_last_line_is_ignored_and_truncated(tmp_path: Path, cut: int) -> None:
    """Also where the cut falls behind an inner bracket, so that the line ends like a whole one."""
    for step in (1, 2):
        log.append(tmp_path, {"kind": "validation", "step": step, "dice": {"a": 0.5}, "mean_dice": 0.5})
    file = tmp_path / log.LOG
    file.write_bytes(file.read_bytes()[:-cut])
    steps = [row["step"] for row in log.read(tmp_path)]
    assert steps == [1]
    log.truncate(tmp_path, 5)
    log.append(tmp_path, {"kind": "train", "step": 2, "loss": 1.0})
    assert [row["kind"] for row in log.read(tmp_path)][-1] == "train"
    assert len(log.read(tmp_path)) == len(steps) + 1


def test_truncate_drops_what_will_be_done_again(tmp_path: Path) -> None:
    for step in range(1, 6):
        log.append(tmp_path, {"kind": "train", "step": step, "loss": float(step)})
    log.truncate(tmp_path, 3)
    assert [row["step"] for row in log.read(tmp_path)] == [1, 2, 3]


def test_progress_is_drawn_from_the_log(tmp_path: Path) -> None:
    log.append(tmp_path, {"kind": "train", "step": 1, "loss": float("nan")})
    for step in (2, 3):
        log.append(tmp_path, {"kind": "train", "step": step, "loss": 1 / step})
    log.append(tmp_path, {"kind": "validation", "step": 3, "dice": {"a": 0.4, "b": None}, "mean_dice": 0.4})
    log.draw(tmp_path)
    content = (tmp_path / "progress.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert sorted(p.name for p in tmp_path.iterdir()) == [log.LOG, "progress.png"]
