"""Which cases train and which validate."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from sparseg.datasets.dataset import Case
from sparseg.errors import ConfigError, DatasetError

logger = logging.getLogger("sparseg")


def split_cases(
    cases: Sequence[Case], *, val_fraction: float = 0.2, seed: int
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Split at random into (train, val), at least one case each.

    The result depends on the case names and the seed, not on the order of `cases`. A single case is used for
    both: `train == val`, and a warning is logged, since such a validation says nothing about other patients.

    Raises:
        DatasetError: no case.
        ConfigError: `val_fraction` outside (0, 1).
    """
    if not cases:
        raise DatasetError(
            "a split needs at least one case", received=0, remedy="list labelled cases under training"
        )
    if not 0 < val_fraction < 1:
        raise ConfigError(
            "val_fraction must lie between 0 and 1",
            received=val_fraction,
            where="val_fraction",
            remedy="e.g. val_share: 0.2",
        )
    ordered = sorted(cases, key=lambda case: case.name)
    if len(ordered) == 1:
        logger.warning(
            "one case only (%s): it trains and validates, scores are not those of unseen data", cases[0].name
        )
        return tuple(ordered), tuple(ordered)
    num_val = min(len(ordered) - 1, max(1, round(len(ordered) * val_fraction)))
    chosen = set(np.random.default_rng(seed).permutation(len(ordered))[:num_val].tolist())
    train = tuple(case for index, case in enumerate(ordered) if index not in chosen)
    val = tuple(case for index, case in enumerate(ordered) if index in chosen)
    return train, val
