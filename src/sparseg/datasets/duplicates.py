"""The same image under two names: in training and validation it would be a leak."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from sparseg.datasets.dataset import Case
from sparseg.errors import DatasetError
from sparseg.volumes.io import read_volume
from sparseg.volumes.volume import Volume


def voxel_hash(volume: Volume) -> str:
    """Return the SHA-256 of shape and voxel values; file name, compression and header do not matter."""
    digest = hashlib.sha256(repr(volume.array.shape).encode())
    digest.update(np.ascontiguousarray(volume.array, dtype="<f4").tobytes())
    return digest.hexdigest()


def find_duplicates(cases: Iterable[Case]) -> list[tuple[Case, Case]]:
    """Read every image and return pairs (first, later) with equal voxels."""
    first: dict[str, Case] = {}
    pairs = []
    for case in cases:
        other = first.setdefault(voxel_hash(read_volume(case.image)), case)
        if other is not case:
            pairs.append((other, case))
    return pairs


def require_no_leak(train: Iterable[Case], held_out: Iterable[Case]) -> None:
    """Refuse an image that is in both groups under different names.

    The very same entry in both (a dataset of one case) is the caller's decision and passes.

    Raises:
        DatasetError: names the pairs.
    """
    train, held_out = tuple(train), tuple(held_out)
    names = {case.name for case in train}
    others = {case.name for case in held_out}
    pairs = find_duplicates((*train, *(case for case in held_out if case.name not in names)))
    leaks = [(a, b) for a, b in pairs if a.name in names and b.name in others - names]
    if leaks:
        raise DatasetError(
            "an image must not be both in training and held out",
            received="; ".join(f"{a.image} = {b.image}" for a, b in leaks[:5]),
            remedy="remove one of the two entries",
            code="leak",
        )
