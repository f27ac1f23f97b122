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
from sparseg.training.class_table import Shares, choose, make_class_table
from sparseg.training.sampling_config import SamplingConfig

_DEFAULT = SamplingConfig()


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


def choose_centre(
    case: PreparedCase,
    roi: Triple,
    positive_share: float,
    rng: np.random.Generator,
    *,
    shares: Shares | None = None,
    boundary_share: float = 0.0,
) -> Triple:
    """Centre voxel of a crop: on a labelled voxel with `positive_share`, else anywhere.

    The centre is moved so that the roi stays inside the volume where it fits.

    Args:
        case: Where the crop is cut.
        roi: Size (H, W, D) in voxels.
        positive_share: Probability of a labelled centre, where the case has labels.
        rng: Source of all choices.
        shares: Probability of each class the case has; None for equal ones.
        boundary_share: Probability that a labelled centre lies on the surface of its class.
    """
    shape = case.label.shape[1:]
    if case.locations and rng.random() < positive_share:
        value = int(rng.choice(list(case.locations)) if shares is None else choose(shares, rng))
        position = np.array(np.unravel_index(int(rng.choice(case.locations[value])), shape))
        if boundary_share and rng.random() < boundary_share:
            position = to_surface(case.label, position, rng)
    else:
        position = np.array([rng.integers(edge) for edge in shape])
    centre = []
    for voxel, edge, window in zip(position, shape, roi, strict=True):
        low, high = window // 2, edge - (window - window // 2)
        centre.append(int(np.clip(voxel, low, high)) if low <= high else edge // 2)
    return (centre[0], centre[1], centre[2])


def to_surface(label: Any, position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Go from a voxel along a random axis and direction to the last voxel of the same class.

    Reads one line of `label` `[1,H,W,D]`. The edge of the volume counts as surface.
    """
    axis, forward = int(rng.integers(3)), bool(rng.integers(2))
    box: list[slice | int] = [0, *(slice(int(p), int(p) + 1) for p in position)]
    start = int(position[axis])
    box[axis + 1] = slice(start, None) if forward else slice(0, start + 1)
    line = np.asarray(label[tuple(box)]).reshape(-1)
    line = line if forward else line[::-1]
    others = np.flatnonzero(line != line[0])
    distance = int(others[0] if len(others) else len(line)) - 1
    moved = position.copy()
    moved[axis] += distance if forward else -distance
    return moved


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
    """Crop number -> augmented (image `[C, *roi]`, label `[1, *roi]`).

    Args:
        cases: Prepared cases.
        roi: Size of a crop (H, W, D).
        chain: From `make_augmentation`.
        positive_share: Share of the crops with a labelled centre.
        pad_value: Value of the image outside the volume.
        seed: Fixes every crop, together with its number.
        sampling: Which class, case and place a labelled centre is chosen from.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        roi: Triple,
        chain: Compose,
        *,
        positive_share: float,
        pad_value: float,
        seed: int,
        sampling: SamplingConfig = _DEFAULT,
    ) -> None:
        self.cases = cases
        self.roi = roi
        self.chain = chain
        self.positive_share = positive_share
        self.pad_value = pad_value
        self.seed = seed
        self.sampling = sampling
        is_default = sampling.classes == "equal" and not sampling.class_first
        self.table = None if is_default else make_class_table(cases)
        self.overall = {} if self.table is None else self.table.shares(None, sampling.classes)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        case, centre = self.place(rng)
        size = margin_size(self.roi)
        crop = {
            "image": cut(case.image, centre, size, self.pad_value).astype(np.float32),
            "label": cut(case.label, centre, size, 0),
        }
        return augment(crop, self.chain, pad_value=self.pad_value, seed=int(rng.integers(2**32)))

    def place(self, rng: np.random.Generator) -> tuple[PreparedCase, Triple]:
        """Choose the case and the centre voxel of a crop."""
        number, positive_share, shares = self._case(rng)
        case = self.cases[number]
        boundary_share = self.sampling.boundary_share
        centre = choose_centre(
            case, self.roi, positive_share, rng, shares=shares, boundary_share=boundary_share
        )
        return case, centre

    def _case(self, rng: np.random.Generator) -> tuple[int, float, Shares | None]:
        """Choose the case; say how likely its centre is labelled, and with which classes."""
        if self.table is None:
            return int(rng.integers(len(self.cases))), self.positive_share, None
        if not self.sampling.class_first:
            number = int(rng.integers(len(self.cases)))
            return number, self.positive_share, self.table.shares(number, self.sampling.classes)
        if self.overall and rng.random() < self.positive_share:
            value = choose(self.overall, rng)
            return int(rng.choice(self.table.cases_with(value))), 1.0, {value: 1.0}
        return int(rng.integers(len(self.cases))), 0.0, None
