"""Losses, by MONAI and PyTorch: Dice with cross-entropy or focal loss, over classes or overlapping regions.

Everything is computed in float32 or wider, whatever autocast says: the sums of Dice run over all voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor
from torch.nn import functional as F

from sparseg.errors import ConfigError
from sparseg.training.loss_config import LossConfig
from sparseg.training.ranks import sum_over_ranks, world

Term = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Tensor | Sequence[Tensor], Tensor], Tensor]
_DEFAULT = LossConfig()


def make_loss(
    config: LossConfig = _DEFAULT, *, regions: bool, num_voxels: Sequence[int] | None = None
) -> Loss:
    """Return loss(logits, target).

    The logits are `[B,K,H,W,D]`, or a sequence of them from deep supervision, finest first, each compared
    with the target at its own size.

    Args:
        config: Settings.
        regions: True for overlapping regions: sigmoid, target `[B,K,H,W,D]` masks. False for classes:
            softmax, target `[B,1,H,W,D]` ids.
        num_voxels: Voxels of each output in the training cases, for `inverse_frequency`.

    Raises:
        ConfigError: see `kind_of`; `inverse_frequency` without `num_voxels`; when called: more outputs than
            deep weights, or another number of class weights than outputs.
    """
    kind = kind_of(config, regions=regions)
    weights = _class_weights(config, num_voxels)
    dice = _dice(regions=regions, include_background=config.include_background)
    voxelwise = None if kind == "dice" else _voxelwise(kind, weights, config.focal_gamma, regions=regions)

    def single(logits: Tensor, target: Tensor) -> Tensor:
        total = config.dice_weight * dice(logits, target)
        return total if voxelwise is None else total + config.ce_weight * voxelwise(logits, target)

    def loss(logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        levels = [logits] if isinstance(logits, Tensor) else list(logits)
        with _full_precision(target.device.type):
            losses = [single(_wide(level), downsample(target, level.shape[2:])) for level in levels]
            return _weighted(losses, config.deep_weights)

    return loss


def kind_of(config: LossConfig, *, regions: bool) -> str:
    """The kind of loss: the one that is set, else the one that fits the outputs.

    Raises:
        ConfigError: settings of a term that this kind does not have. `LossConfig` refuses them where the kind
            is set; it does not know of regions.
    """
    kind = config.kind or ("dice" if regions else "dice_ce")
    if kind != "dice":
        return kind
    remedy = "set loss.kind=dice_ce"
    if config.dice_weight == 0:
        raise ConfigError(
            "at least one term of the loss must have a weight above 0, and over regions it is dice alone",
            received=0,
            remedy=remedy,
            where="loss.dice_weight",
        )
    if config.class_weights != "none":
        raise ConfigError(
            "class_weights act on the voxel-wise term, which the loss over regions does not have by itself",
            received=config.class_weights,
            remedy=remedy,
            where="loss.class_weights",
        )
    return kind


def _full_precision(device_type: str) -> AbstractContextManager[object]:
    """Switch autocast off where the device knows it (the meta device, which only counts memory, does not)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def downsample(target: Tensor, size: Sequence[int]) -> Tensor:
    """Take the nearest voxel of each axis, `[B,C,H,W,D]` -> `[B,C,*size]`; ids and masks stay what they are.

    A voxel at half way between two takes the higher one.
    """
    for axis, (new, old) in enumerate(zip(size, target.shape[2:], strict=True), start=2):
        if new != old:
            # The centre of coarse voxel i lies at (2i + 1) / 2 · old / new fine voxels; in whole numbers.
            places = (2 * torch.arange(new, device=target.device) + 1) * old // (2 * new)
            target = target.index_select(axis, places)
    return target


def inverse_frequency(num_voxels: Sequence[int]) -> tuple[float, ...]:
    """Weights proportional to 1 / voxels with mean 1 over the outputs that occur; 1 for those that do not."""
    inverse = [1.0 / count if count else 0.0 for count in num_voxels]
    total = sum(inverse)
    present = sum(count > 0 for count in num_voxels)
    return tuple(value * present / total if value else 1.0 for value in inverse)


def _class_weights(config: LossConfig, num_voxels: Sequence[int] | None) -> tuple[float, ...] | None:
    if isinstance(config.class_weights, tuple):
        return config.class_weights
    if config.class_weights == "none":
        return None
    if num_voxels is None:
        raise ConfigError(
            "weights by inverse frequency need the number of voxels of each output",
            received=config.class_weights,
            remedy="give num_voxels, or write the weights as numbers",
            where="loss.class_weights",
        )
    return inverse_frequency(num_voxels)


def _dice(*, regions: bool, include_background: bool) -> Term:
    if regions:
        loss: Term = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
        return loss
    # Dice over the whole batch: a structure absent from one crop of it must not count as missed.
    alone: Term = DiceLoss(
        include_background=include_background,
        softmax=True,
        to_onehot_y=True,
        squared_pred=True,
        smooth_nr=0.0,
        smooth_dr=1e-6,
        batch=True,
    )

    def dice(logits: Tensor, target: Tensor) -> Tensor:
        if world() == 1:
            return alone(logits, target)
        return shared_dice(logits, target, include_background=include_background)

    return dice


def shared_dice(logits: Tensor, target: Tensor, *, include_background: bool) -> Tensor:
    """Dice loss over the batches of all processes together, the same number in each of them.

    The mean of the Dice of parts is not the Dice of the whole, so the sums are exchanged, 2K numbers.

    Args:
        logits: `[B,K,H,W,D]` of this process.
        target: Ids `[B,1,H,W,D]`.
        include_background: Whether class 0 counts.
    """
    probabilities = logits.softmax(dim=1)
    reference = torch.zeros_like(probabilities).scatter_(1, target.long(), 1.0)
    axes = (0, 2, 3, 4)
    overlap = (probabilities * reference).sum(dim=axes)
    sizes = (probabilities.square() + reference).sum(dim=axes)
    overlap, sizes = sum_over_ranks(torch.stack((overlap, sizes))).unbind()
    losses = 1 - 2 * overlap / (sizes + 1e-6)
    return losses.mean() if include_background else losses[1:].mean()


def _voxelwise(kind: str, weights: tuple[float, ...] | None, gamma: float, *, regions: bool) -> Term:
    if kind == "dice_focal":
        focal: Term = FocalLoss(to_onehot_y=not regions, use_softmax=not regions, gamma=gamma, weight=weights)
        return _checked(focal, weights)
    return _checked(_region_entropy(weights) if regions else _class_entropy(weights), weights)


def _class_entropy(weights: tuple[float, ...] | None) -> Term:
    def entropy(logits: Tensor, target: Tensor) -> Tensor:
        weight = None if weights is None else logits.new_tensor(weights)
        ids = target[:, 0].long()
        if weight is None or world() == 1:
            return F.cross_entropy(logits, ids, weight=weight)
        # A weighted mean is over the weights of all processes; each counts `world` times in their mean.
        total = sum_over_ranks(weight[ids].sum())
        return F.cross_entropy(logits, ids, weight=weight, reduction="sum") * world() / total

    return entropy


def _region_entropy(weights: tuple[float, ...] | None) -> Term:
    """Binary cross-entropy per region. MONAI's DiceCELoss would take softmax over the regions here."""

    def entropy(logits: Tensor, target: Tensor) -> Tensor:
        weight = None if weights is None else logits.new_tensor(weights).view(-1, 1, 1, 1)
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), weight=weight)

    return entropy


def _checked(term: Term, weights: tuple[float, ...] | None) -> Term:
    """The term, refusing logits of another number of outputs than there are weights."""

    def checked(logits: Tensor, target: Tensor) -> Tensor:
        if weights is not None and len(weights) != logits.shape[1]:
            raise ConfigError(
                "there must be one class weight per output of the network, background included",
                received=f"{len(weights)} weights for {logits.shape[1]} outputs",
                remedy="write one number per output",
                where="loss.class_weights",
            )
        return term(logits, target)

    return checked


def _weighted(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if len(losses) == 1:
        return losses[0]
    if len(losses) > len(weights):
        raise ConfigError(
            "there must be a weight for each output of deep supervision",
            received=f"{len(weights)} weights for {len(losses)} outputs",
            remedy="write one number per output, finest first",
            where="loss.deep_weights",
        )
    used = weights[: len(losses)]
    parts = [weight / sum(used) * loss for weight, loss in zip(used, losses, strict=True)]
    return torch.stack(parts).sum()


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32, or wider where they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
