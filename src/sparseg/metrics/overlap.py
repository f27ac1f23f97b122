"""Dice per class, by MONAI."""

from __future__ import annotations

import numpy as np

from sparseg.metrics.boxes import label_pair, mask_tensors


def dice(pred: np.ndarray, ref: np.ndarray, num_classes: int) -> dict[int, float]:
    """Return Dice of the classes 1 to num_classes - 1.

    Args:
        pred: `[H,W,D]` label ids.
        ref: `[H,W,D]` label ids on the same grid.
        num_classes: K, background included.

    Returns:
        Class id -> value in [0, 1]. NaN where prediction and reference are both empty: such a class says
        nothing and does not belong into a mean. 0 where only one of them is empty.

    Raises:
        ShapeError: not two integer arrays of one shape.
    """
    pred, ref = label_pair(pred, ref)
    return {index: dice_of_masks(pred == index, ref == index) for index in range(1, num_classes)}


def dice_of_masks(pred: np.ndarray, ref: np.ndarray) -> float:
    """Return Dice of two boolean masks `[H,W,D]`; NaN if both are empty."""
    if not pred.any() and not ref.any():
        return float("nan")
    from monai.metrics import compute_dice

    # MONAI would answer NaN for a false positive where the reference is empty; that is a miss and scores 0
    # here.
    return float(compute_dice(*mask_tensors(pred, ref), include_background=True, ignore_empty=False))
