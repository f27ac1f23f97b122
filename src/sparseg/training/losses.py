"""Losses, by MONAI: Dice + cross-entropy over exclusive classes, Dice over overlapping regions."""

from __future__ import annotations

from collections.abc import Callable

from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor


def make_loss(*, regions: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Return loss(logits `[B,K,H,W,D]`, target).

    Args:
        regions: True for overlapping regions: sigmoid, target `[B,K,H,W,D]` masks, Dice with squared
            predictions (the paper's BraTS setting). False: softmax, target `[B,1,H,W,D]` ids, Dice +
            cross-entropy.
    """
    loss: Callable[[Tensor, Tensor], Tensor]
    if regions:
        loss = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)
    else:
        # Dice over the whole batch: a structure absent from one crop of it must not count as missed.
        loss = DiceCELoss(
            softmax=True, to_onehot_y=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6, batch=True
        )
    return loss
