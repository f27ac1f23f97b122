"""The same image under two names: in training and validation it would be a leak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sparseg.datasets.dataset import Case
from sparseg.errors import DatasetError


def find_duplicates(cases: Iterable[Case], hashes: Mapping[str, str]) -> list[tuple[Case, Case]]:
    """Return pairs (first, later) of cases with equal voxels.

    Args:
        cases: In any order.
        hashes: Case name -> `CaseFacts.image_hash`; file names, compression and axis order do not matter.
    """
    first: dict[str, Case] = {}
    pairs = []
    for case in cases:
        other = first.setdefault(hashes[case.name], case)
        if other is not case:
            pairs.append((other, case))
    return pairs


def require_no_leak(train: Iterable[Case], held_out: Iterable[Case], hashes: Mapping[str, str]) -> None:
    """Refuse an image that is in both groups under different names.

    The very same entry in both (a dataset of one case) is the caller's decision and passes.

    Args:
        train: Cases that train.
        held_out: Cases that validate or test.
        hashes: Case name -> `CaseFacts.image_hash`.

    Raises:
        DatasetError: names the pairs.
    """
    train, held_out = tuple(train), tuple(held_out)
    names = {case.name for case in train}
    others = {case.name for case in held_out}
    pairs = find_duplicates((*train, *(case for case in held_out if case.name not in names)), hashes)
    leaks = [(a, b) for a, b in pairs if a.name in names and b.name in others - names]
    if leaks:
        raise DatasetError(
            "an image must not be both in training and held out",
            received="; ".join(f"{a.image} = {b.image}" for a, b in leaks[:5]),
            remedy="remove one of the two entries",
            code="leak",
        )
