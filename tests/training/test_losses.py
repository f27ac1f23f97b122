"""Losses by hand and against MONAI's own, at all sizes of deep supervision, finite where it is hard."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor
from torch.nn import functional as F

from sparseg.config import parse_config
from sparseg.errors import ConfigError
from sparseg.training.loss_config import LossConfig
from sparseg.training.losses import downsample, inverse_frequency, make_loss

KINDS = ["dice_ce", "dice", "dice_focal"]


def classes(seed: int = 0, size: tuple[int, int, int] = (6, 4, 4)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, *size, generator=generator)
    return logits, torch.randint(0, 3, (2, 1, *size), generator=generator)


def masks(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 6, 4, 4, generator=generator)
    return logits, torch.randint(0, 2, logits.shape, generator=generator).float()


def loss_of(logits: Any, target: Tensor, *, regions: bool = False, **settings: Any) -> Tensor:
    return make_loss(LossConfig.model_validate(settings), regions=regions)(logits, target)


def gradient(loss: Any, logits: Tensor, target: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("seed", range(3))
def test_the_default_for_classes_is_the_papers_bit_for_bit(seed: int) -> None:
    logits, target = classes(seed)
    peer = DiceCELoss(
        softmax=True, to_onehot_y=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6, batch=True
    )
    ours = make_loss(regions=False)
    assert torch.equal(ours(logits, target), peer(logits, target))
    assert torch.equal(gradient(ours, logits, target), gradient(peer, logits, target))
    assert torch.equal(ours([logits], target), peer(logits, target))


@pytest.mark.parametrize("seed", range(3))
def test_the_default_for_regions_is_the_papers_bit_for_bit(seed: int) -> None:
    logits, target = masks(seed)
    peer = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
    ours = make_loss(regions=True)
    assert torch.equal(ours(logits, target), peer(logits, target))
    assert torch.equal(gradient(ours, logits, target), gradient(peer, logits, target))


def test_weights_of_the_terms_and_gamma_by_hand() -> None:
    logits, target = classes()
    dice = loss_of(logits, target, kind="dice")
    logp = logits.log_softmax(1).gather(1, target)
    both = loss_of(logits, target, kind="dice_ce", dice_weight=0.5, ce_weight=2.0)
    assert float(both) == pytest.approx(float(0.5 * dice - 2 * logp.mean()), rel=1e-5)
    focal = -((1 - logp.exp()) ** 1.5 * logp).sum() / logits.numel()  # MONAI's mean is over classes too
    found = loss_of(logits, target, kind="dice_focal", focal_gamma=1.5, ce_weight=3.0)
    assert float(found) == pytest.approx(float(dice + 3 * focal), rel=1e-5)


def test_regions_take_binary_terms_of_each_region() -> None:
    logits, target = masks()
    dice = loss_of(logits, target, regions=True, kind="dice")
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    assert float(loss_of(logits, target, regions=True, kind="dice_ce")) == pytest.approx(
        float(dice + entropy), rel=1e-6
    )
    right = torch.where(target > 0, logits, -logits).sigmoid()
    focal = -((1 - right) ** 2 * right.log()).mean()
    assert float(loss_of(logits, target, regions=True, kind="dice_focal")) == pytest.approx(
        float(dice + focal), rel=1e-4
    )


def test_without_background_dice_is_the_mean_of_the_others() -> None:
    logits, target = classes()
    p = logits.softmax(1)
    values = []
    for c in (1, 2):
        q, y = p[:, c], (target[:, 0] == c).float()
        values.append(float(1 - 2 * (q * y).sum() / (q.square().sum() + y.sum() + 1e-6)))
    found = loss_of(logits, target, kind="dice", include_background=False)
    assert float(found) == pytest.approx(sum(values) / 2, rel=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_class_weights_weigh_voxels(regions: bool) -> None:
    logits, target = masks() if regions else classes()
    weights = (0.2, 1.0, 3.0)
    dice = float(loss_of(logits, target, regions=regions, kind="dice"))
    found = float(loss_of(logits, target, regions=regions, kind="dice_ce", class_weights=weights)) - dice
    table = torch.tensor(weights)
    if regions:
        each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        expected = (each * table.view(-1, 1, 1, 1)).mean()
    else:
        each = -logits.log_softmax(1).gather(1, target)
        expected = (each * table[target]).sum() / table[target].sum()
    assert found == pytest.approx(float(expected), rel=1e-5)
    focal = loss_of(logits, target, regions=regions, kind="dice_focal", class_weights=weights)
    plain = loss_of(logits, target, regions=regions, kind="dice_focal")
    assert not torch.equal(focal, plain)


def test_inverse_frequency_has_mean_one_and_ignores_absent_outputs() -> None:
    weights = inverse_frequency((1000, 10, 0, 1))
    assert weights[1] / weights[0] == pytest.approx(100)
    assert weights[3] / weights[1] == pytest.approx(10)
    assert weights[2] == 1.0
    assert (weights[0] + weights[1] + weights[3]) / 3 == pytest.approx(1.0)
    assert inverse_frequency((0, 0)) == (1.0, 1.0)
    logits, target = classes()
    config = LossConfig(class_weights="inverse_frequency")
    found = make_loss(config, regions=False, num_voxels=(50, 20, 5))(logits, target)
    given = loss_of(logits, target, class_weights=inverse_frequency((50, 20, 5)))
    assert torch.equal(found, given)


def test_weights_that_do_not_fit_are_refused() -> None:
    logits, target = classes()
    with pytest.raises(ConfigError, match="2 weights for 3 outputs"):
        loss_of(logits, target, class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"loss\.class_weights.*num_voxels"):
        make_loss(LossConfig(class_weights="inverse_frequency"), regions=False)
    with pytest.raises(ConfigError, match="1 weights for 2 outputs"):
        loss_of([logits, logits], target, deep_weights=(1.0,))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "dice", "dice_weight": 0.0},
        {"dice_weight": 0.0, "ce_weight": 0.0},
        {"kind": "dice", "class_weights": (1.0, 2.0)},
        {"class_weights": (0.0, 0.0)},
        {"deep_weights": (0.0, 1.0)},
        {"deep_weights": ()},
        {"class_weights": "often"},
        {"ce_weight": -1.0},
        {"ce_weight": math.nan},
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_config(LossConfig, settings)


@pytest.mark.parametrize(("old", "new"), [(8, 4), (8, 2), (6, 4), (7, 3), (5, 5), (9, 1), (3, 6)])
def test_downsampling_takes_the_nearest_voxel(old: int, new: int) -> None:
    target = torch.arange(old).view(1, 1, old, 1, 1).expand(1, 1, old, 2, 3)
    found = downsample(target, (new, 2, 3))
    expected = F.interpolate(target.double(), size=(new, 2, 3), mode="nearest-exact").long()
    assert torch.equal(found, expected)
    assert found.dtype == target.dtype


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"dice_weight": 0}, "loss.dice_weight: at least one term"),
        ({"class_weights": (1, 2, 3)}, "loss.class_weights: .*voxel-wise term"),
        ({"class_weights": "inverse_frequency"}, "loss.class_weights: .*voxel-wise term"),
    ],
)
def test_the_default_for_regions_refuses_settings_that_do_nothing(
    settings: dict[str, Any], where: str
) -> None:
    logits, target = masks()
    with pytest.raises(ConfigError, match=f"{where}.*set loss.kind=dice_ce"):
        loss_of(logits, target, regions=True, **settings)
    config = LossConfig.model_validate(settings | {"kind": "dice_ce"})
    assert float(make_loss(config, regions=True, num_voxels=(5, 6, 7))(logits, target)) > 0
    make_loss(LossConfig.model_validate(settings), regions=False, num_voxels=(5, 6, 7))


@pytest.mark.parametrize("regions", [False, True])
def test_deep_supervision_is_the_weighted_mean_of_its_levels(regions: bool) -> None:
    logits, target = masks() if regions else classes()
    coarse = [logits, logits[..., ::2, ::2, ::2] * 0.5, logits[..., ::3, ::4, ::4]]
    single = [float(loss_of(level, downsample(target, level.shape[2:]), regions=regions)) for level in coarse]
    found = loss_of(coarse, target, regions=regions, deep_weights=(1.0, 0.5, 0.1))
    assert float(found) == pytest.approx((single[0] + 0.5 * single[1] + 0.1 * single[2]) / 1.6, rel=1e-6)
    two = loss_of(coarse[:2], target, regions=regions, deep_weights=(1.0, 0.5, 0.1))
    assert float(two) == pytest.approx((single[0] + 0.5 * single[1]) / 1.5, rel=1e-6)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 80.0, 1e4])
def test_empty_crops_and_large_logits_stay_finite(kind: str, regions: bool, size: float) -> None:
    for sign in (-1.0, 1.0):
        pattern = torch.linspace(-1, 1, 2 * 2 * 4**3).view(2, 2, 4, 4, 4)
        logits = (sign * size * pattern).requires_grad_()
        target = torch.zeros(2, 2, 4, 4, 4) if regions else torch.zeros(2, 1, 4, 4, 4).long()
        loss = loss_of([logits, logits[..., ::2, ::2, ::2]], target, regions=regions, kind=kind)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_under_autocast_is_computed_in_float32(kind: str) -> None:
    logits, target = classes()
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(half, target, kind=kind)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss_of(half.float(), target, kind=kind))
