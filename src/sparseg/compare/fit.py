"""Whether every variant can be built for a dataset: tried before anything is trained."""

from __future__ import annotations

import torch

from sparseg.compare.macs import count_macs
from sparseg.compare.plan import Plan
from sparseg.compare.variants import is_of_a_list
from sparseg.datasets.dataset import Dataset
from sparseg.errors import InputError
from sparseg.training.network import make_network


def misfits(plan: Plan, dataset: Dataset, asked_for: str) -> dict[str, str]:
    """Variants of a list that do not fit, with the reason; costs no arithmetic.

    Args:
        plan: All variants.
        dataset: Decides channels and outputs.
        asked_for: What was given as `--variants`; a variant asked for by its own name must fit.

    Raises:
        ConfigError, ShapeError: a variant that was asked for by name does not fit.
    """
    found = {}
    for name, config in plan.variants.items():
        try:
            with torch.device("meta"):
                net = make_network(dataset, config)
            count_macs(net)
        except InputError as error:
            if plan.definitions[name] is not None or not is_of_a_list(asked_for, name):
                raise
            found[name] = str(error)
    return found
