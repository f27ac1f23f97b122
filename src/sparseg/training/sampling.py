"""Where training crops are cut, and the dataset that cuts them.

Every crop depends only on (seed, crop number), so a resumed run sees the same crops, with any number of
workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset

from sparseg.shapes import Triple
from sparseg.training.augment import augment, margin_size

MAX_LOCATIONS = 20_000


@dataclass(frozen=True)
class TrainingCase:
    """A prepared case in memory: image `[C,H,W,D]` float32, label `[H,W,D]`.

    Voxel positions of each class present.
    """

    image: np.ndarray
    label: np.ndarray
    locations: dict[int, np.ndarray]


def make_training_case(image: np.ndarray, label: np.ndarray) -> TrainingCase:
    """Find the voxels of each foreground class, at most `MAX_LOCATIONS` evenly picked ones per class."""
    flat = label.reshape(-1)
    locations = {}
    for value in np.unique(flat):
        if value > 0:
            found = np.flatnonzero(flat == value)
            locations[int(value)] = found[:: max(1, len(found) // MAX_LOCATIONS)]
    return TrainingCase(image, label, locations)


def choose_centre(case: TrainingCase, roi: Triple, positive_share: float, rng: np.random.Generator) -> Triple:
    """Centre voxel of a crop: on a labelled voxel (classes equally likely) with `positive_share`, else
    anywhere.

    The centre is moved so that the roi stays inside the volume where it fits.
    """
    shape = case.label.shape
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


def cut(array: np.ndarray, centre: Triple, size: Triple, pad_value: float) -> np.ndarray:
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
        cases: Sequence[TrainingCase],
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
            "image": cut(case.image, centre, size, self.pad_value),
            "label": cut(case.label[None], centre, size, 0),
        }
        return augment(crop, self.chain, pad_value=self.pad_value, seed=int(rng.integers(2**32)))
