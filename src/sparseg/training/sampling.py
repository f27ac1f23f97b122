"""Where training crops are cut, and the dataset that cuts them.

Every crop depends only on (seed, crop number), so a resumed run sees the same crops, with any number of
workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset

from sparseg.shapes import Triple
from sparseg.training.augment import augment, margin_size


class PreparedCase(Protocol):
    """A prepared case, in memory or in the cache.

    Attributes:
        image: `[C,H,W,D]`, sliced as a numpy array.
        label: `[1,H,W,D]` class numbers (ids with regions), sliced as a numpy array.
        locations: Class -> flat indices of some of its voxels in `[H,W,D]`.
    """

    @property
    def image(self) -> Any:
        """See above."""

    @property
    def label(self) -> Any:
        """See above."""

    @property
    def locations(self) -> Mapping[int, np.ndarray]:
        """See above."""


def choose_centre(case: PreparedCase, roi: Triple, positive_share: float, rng: np.random.Generator) -> Triple:
    """Centre voxel of a crop: on a labelled voxel (classes equally likely) with `positive_share`, else
    anywhere.

    The centre is moved so that the roi stays inside the volume where it fits.
    """
    shape = case.label.shape[1:]
    if case.locations and rng.random() < positive_share:
        value = rng.choice(list(case.locations))
        position = np.array(np.unravel_index(int(rng.choice(case.locations[int(value)])), shape))
    else:
        position = np.array([rng.integers(edge) for edge in shape])
    centre = []
    for voxel, edge, window in zip(position, shape, roi, strict=True):
        low, high = window // 2, edge - (window - window // 2)
        centre.append(int(np.clip(voxel, low, high)) if low <= high else edge // 2)
    return (centre[0], centre[1], centre[2])


def cut(array: Any, centre: Triple, size: Triple, pad_value: float) -> np.ndarray:
    """Cut `size` voxels around `centre` out of `[C, H, W, D]`; what lies outside is `pad_value`."""
    starts = [c - s // 2 for c, s in zip(centre, size, strict=True)]
    source, target = [slice(None)], [slice(None)]
    for start, length, edge in zip(starts, size, array.shape[1:], strict=True):
        a, b = max(start, 0), min(start + length, edge)
        source.append(slice(a, b))
        target.append(slice(a - start, b - start))
    result = np.full((array.shape[0], *size), pad_value, dtype=array.dtype)
    result[tuple(target)] = array[tuple(source)]
    return result


class CropDataset(Dataset[tuple[Tensor, Tensor]]):
    """Crop number -> augmented (image `[C, *roi]`, label `[1, *roi]`)."""

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        roi: Triple,
        chain: Compose,
        *,
        positive_share: float,
        pad_value: float,
        seed: int,
    ) -> None:
        self.cases = cases
        self.roi = roi
        self.chain = chain
        self.positive_share = positive_share
        self.pad_value = pad_value
        self.seed = seed

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        case = self.cases[int(rng.integers(len(self.cases)))]
        centre = choose_centre(case, self.roi, self.positive_share, rng)
        size = margin_size(self.roi)
        crop = {
            "image": cut(case.image, centre, size, self.pad_value).astype(np.float32),
            "label": cut(case.label, centre, size, 0),
        }
        return augment(crop, self.chain, pad_value=self.pad_value, seed=int(rng.integers(2**32)))
