"""Surface distances per class in mm, by MONAI."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from sparseg.metrics.boxes import label_pair, mask_tensors


def hd95_mm(
    pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float], *, num_classes: int
) -> dict[int, float]:
    """Return the 95th percentile Hausdorff distance of the classes 1 to num_classes - 1.

    The larger of the two directed percentiles, between the centres of surface voxels.

    Args:
        pred: `[H,W,D]` label ids.
        ref: `[H,W,D]` label ids on the same grid.
        spacing: Voxel edges in mm, in array-axis order.
        num_classes: K, background included.

    Returns:
        Class id -> mm. NaN where prediction or reference is empty, as there is no distance then: report how
        many.

    Raises:
        ShapeError: not two integer arrays of one shape.
    """
    pred, ref = label_pair(pred, ref)
    return {index: hd95_of_masks(pred == index, ref == index, spacing) for index in range(1, num_classes)}


def nsd(
    pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float], *, num_classes: int, tolerance_mm: float
) -> dict[int, float]:
    """Return the normalised surface Dice of the classes 1 to num_classes - 1, with sub-voxel surfaces.

    Args:
        pred: `[H,W,D]` label ids.
        ref: `[H,W,D]` label ids on the same grid.
        spacing: Voxel edges in mm, in array-axis order.
        num_classes: K, background included.
        tolerance_mm: A surface element this close to the other surface counts as right.

    Returns:
        Class id -> share of both surfaces in [0, 1]. NaN where both are empty; 0 where only one is.

    Raises:
        ShapeError: not two integer arrays of one shape.
    """
    pred, ref = label_pair(pred, ref)
    return {
        index: nsd_of_masks(pred == index, ref == index, spacing, tolerance_mm=tolerance_mm)
        for index in range(1, num_classes)
    }


def hd95_of_masks(pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float]) -> float:
    """Return HD95 in mm of two boolean masks `[H,W,D]`; NaN if one is empty."""
    if not pred.any() or not ref.any():
        return float("nan")
    from monai.metrics import compute_hausdorff_distance

    with _quiet():
        value = compute_hausdorff_distance(
            *mask_tensors(pred, ref), include_background=True, percentile=95, spacing=list(spacing)
        )
    return float(value)


def nsd_of_masks(
    pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float], *, tolerance_mm: float
) -> float:
    """Return the normalised surface Dice of two boolean masks `[H,W,D]`.

    NaN if both are empty, 0 if one is.
    """
    if not pred.any() or not ref.any():
        return 0.0 if pred.any() or ref.any() else float("nan")
    from monai.metrics import compute_surface_dice

    with _quiet():
        value = compute_surface_dice(
            *mask_tensors(pred, ref),
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=list(spacing),
            use_subvoxels=True,
        )
    return float(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide that MONAI 1.6 calls an argument of its own that it deprecates; no user could act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        yield
