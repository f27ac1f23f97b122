"""Masks cut to what matters; distances then cost by the structure, not by the volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparseg.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor


def joint_box(pred: np.ndarray, ref: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the smallest box `[H,W,D]` that holds every non-zero voxel of both; empty if there is none."""
    either = (pred != 0) | (ref != 0)
    box = []
    for axis in range(3):
        hits = np.flatnonzero(either.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0))
    return (box[0], box[1], box[2])


def label_pair(pred: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both label maps as arrays cut to their joint box.

    Raises:
        ShapeError: not two `[H,W,D]` integer arrays of one shape.
    """
    pred, ref = np.asarray(pred), np.asarray(ref)
    if pred.shape != ref.shape or pred.ndim != 3:
        raise ShapeError(
            "prediction and reference must be [H,W,D] of one shape",
            received=f"{pred.shape} and {ref.shape}",
            remedy="bring both to one grid",
        )
    if pred.dtype.kind not in "iub" or ref.dtype.kind not in "iub":
        raise ShapeError(
            "label maps must be integers",
            received=f"{pred.dtype} and {ref.dtype}",
            remedy="cast the ids to an integer type",
        )
    box = joint_box(pred, ref)
    return pred[box], ref[box]


def mask_tensors(pred: np.ndarray, ref: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return two boolean masks as tensors `[1,1,h,w,d]` cut to their joint box.

    MONAI pads by one empty voxel around that box, so a tight cut leaves every surface closed.
    """
    import torch

    box = joint_box(pred, ref)
    first, second = (torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (pred, ref))
    return first, second
