"""Validation: whole prepared volumes through the sliding window, Dice per class on the model grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sparseg.datasets.label_table import region_masks
from sparseg.metrics.overlap import dice_of_masks
from sparseg.models.network import Network
from sparseg.training.ranks import gather_from_all, rank, world
from sparseg.training.sampling import PreparedCase
from sparseg.windows.sliding import sliding_window


def validate(
    net: Network,
    cases: Sequence[PreparedCase],
    *,
    regions: Mapping[str, tuple[int, ...]],
    overlap: float,
    pad_value: float,
    device: torch.device | str,
) -> list[float]:
    """Dice of each output (classes without background, or regions), averaged over the cases where it is
    defined.

    Several processes, each with the whole network, share the cases; all of them get the result of one.

    Returns:
        One number per output; NaN where no case has the structure in either prediction or reference.
    """
    was_training = net.training
    net.eval()
    rows = []
    with torch.inference_mode():
        for case in cases[rank() :: world()]:
            logits = sliding_window(
                torch.from_numpy(np.asarray(case.image[...], dtype=np.float32)),
                net,
                net.config.roi_size,
                overlap=overlap,
                pad_value=pad_value,
                device=device,
            )
            rows.append(_dice(logits, np.asarray(case.label[0]), regions))
    net.train(was_training)
    table = np.array(_in_order(gather_from_all(rows), len(cases)), dtype=np.float64)
    counts = np.sum(~np.isnan(table), axis=0)
    sums = np.nansum(table, axis=0)
    return [float(s / n) if n else float("nan") for s, n in zip(sums, counts, strict=True)]


def _in_order(shares: Sequence[Sequence[list[float]]], num_cases: int) -> list[list[float]]:
    """Rows of all processes in the order of the cases, so that sums are those of one process to the bit."""
    return [shares[number % len(shares)][number // len(shares)] for number in range(num_cases)]


def _dice(logits: torch.Tensor, label: np.ndarray, regions: Mapping[str, tuple[int, ...]]) -> list[float]:
    if regions:
        predicted = (logits > 0).numpy()
        reference = region_masks(label, regions).astype(bool)
        return [dice_of_masks(p, r) for p, r in zip(predicted, reference, strict=True)]
    classes = logits.argmax(dim=0).numpy()
    return [dice_of_masks(classes == value, label == value) for value in range(1, logits.shape[0])]
