"""Numbers per label, from one pass over the label map on the original grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from sparseg.predict.decide import make_background_test, make_decision, paint_order
from sparseg.volumes.geometry import voxel_to_world


@dataclass(frozen=True)
class LabelStatistics:
    """One label of one case; what has no value for a label without voxels is None.

    Attributes:
        label: Id in the label map.
        voxels: Their number.
        volume_ml: Their volume.
        centroid_mm: Mean position of the voxel centres in RAS mm.
        box_vox: First and last voxel along each array axis, both inclusive.
        box_mm: Lower and upper corner in RAS mm of the box along the world axes that holds `box_vox` with the
            outer faces of its voxels; on an oblique grid it is larger than the structure.
        touches_border: Whether a voxel lies on the border of the grid, so that the volume may be cut off.
        mean_confidence: Mean probability of the label over the voxels that the network gave it, before any
            clean-up.
    """

    label: int
    voxels: int
    volume_ml: float
    centroid_mm: tuple[float, ...] | None
    box_vox: tuple[tuple[int, int], ...] | None
    box_mm: tuple[tuple[float, ...], tuple[float, ...]] | None
    touches_border: bool
    mean_confidence: float | None = None


def measure_labels(
    labels: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    *,
    confidence: Mapping[int, float] | None = None,
) -> dict[str, LabelStatistics]:
    """Measure every label but the background.

    Args:
        labels: `[H, W, D]` unsigned ids, all of them in `names`.
        affine: 4x4 voxel -> RAS mm.
        names: Names of the ids.
        confidence: Mean probability by id, where it is known.

    Returns:
        Name -> numbers, in the order of `names`.
    """
    profiles = _profiles(labels, max(names) + 1)
    affine = np.asarray(affine, dtype=np.float64)
    return {
        name: _measure(label, [profile[label] for profile in profiles], affine, (confidence or {}).get(label))
        for label, name in names.items()
        if label
    }


def _profiles(labels: np.ndarray, num_ids: int) -> list[np.ndarray]:
    """Voxels of each id in each plane across each axis: three arrays `[num_ids, length of the axis]`."""
    # In memory order a plane is one piece, whichever way the array lies.
    order = np.argsort([-abs(stride) for stride in labels.strides], kind="stable").tolist()
    turned = labels.transpose(order)
    height, width, depth = turned.shape
    profiles = [np.zeros((num_ids, size), dtype=np.int64) for size in turned.shape]
    for i in range(height):
        plane = turned[i].reshape(-1)
        places = np.flatnonzero(plane)  # background is most of it and not measured
        ids = plane[places].astype(np.int64)
        profiles[0][:, i] = np.bincount(ids, minlength=num_ids)
        for axis, size, position in ((1, width, places // depth), (2, depth, places % depth)):
            counts = np.bincount(ids * size + position, minlength=num_ids * size)
            profiles[axis] += counts.reshape(num_ids, size)
    return [profiles[order.index(axis)] for axis in range(3)]


def _measure(
    label: int, profiles: list[np.ndarray], affine: np.ndarray, confidence: float | None
) -> LabelStatistics:
    voxels = int(profiles[0].sum())
    if not voxels:
        return LabelStatistics(label, 0, 0.0, None, None, None, touches_border=False)
    used = [np.flatnonzero(profile) for profile in profiles]
    box = tuple((int(places[0]), int(places[-1])) for places in used)
    centre = [float(profile @ np.arange(len(profile))) / voxels for profile in profiles]
    corners = voxel_to_world(affine, np.array(list(product(*((low - 0.5, high + 0.5) for low, high in box)))))
    return LabelStatistics(
        label=label,
        voxels=voxels,
        volume_ml=round(voxels * abs(float(np.linalg.det(affine[:3, :3]))) / 1000, 3),
        centroid_mm=_rounded(voxel_to_world(affine, centre)),
        box_vox=box,
        box_mm=(_rounded(corners.min(axis=0)), _rounded(corners.max(axis=0))),
        touches_border=any(
            low == 0 or high == len(profile) - 1 for (low, high), profile in zip(box, profiles, strict=True)
        ),
        mean_confidence=None if confidence is None else round(confidence, 4),
    )


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)


class ConfidentDecision:
    """The decision of `make_decision`, which notes on the way how probable each label was.

    Only foreground voxels are looked at, so the probabilities cost little and are never held for a volume.

    Args:
        labels: Ids of the model.
        regions: Overlapping regions, or none.

    Attributes:
        background: That of `make_background_test`; what it is sure of need not be decided.
    """

    def __init__(self, labels: Iterable[int], regions: Mapping[str, tuple[int, ...]]) -> None:
        ids = sorted(labels)
        self._decide: Callable[[Tensor], Tensor] = make_decision(ids, regions)
        self.background = make_background_test(ids, regions)
        # Where several channels paint one id, the smallest region is painted last and decides.
        channels = {label: channel for channel, label in (paint_order(regions) if regions else [])}
        self._channel = torch.zeros(ids[-1] + 1, dtype=torch.int64)
        for label, channel in channels.items():
            self._channel[label] = channel
        self._exclusive = not regions
        self._sums = torch.zeros(ids[-1] + 1, dtype=torch.float64)
        self._counts = torch.zeros(ids[-1] + 1, dtype=torch.float64)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits `[K, ...]` -> ids `[...]`."""
        ids = self._decide(logits)
        places = ids.flatten().nonzero()[:, 0]
        found = ids.flatten()[places].long()
        chosen = logits.flatten(1).index_select(1, places.to(logits.device)).cpu().float()
        if self._exclusive:
            # The label is the argmax, so the largest logit is its own and no exponential can overflow.
            probability = chosen.sub_(chosen.amax(dim=0)).exp_().sum(dim=0).reciprocal()
        else:
            probability = chosen.gather(0, self._channel[found][None])[0].sigmoid()
        size = len(self._counts)
        self._sums += torch.bincount(found, weights=probability.double(), minlength=size)
        self._counts += torch.bincount(found, minlength=size)
        return ids

    def mean_confidence(self) -> dict[int, float]:
        """Mean probability by id, over all voxels so far; ids without voxels are left out."""
        return {
            int(label): float(self._sums[label] / self._counts[label])
            for label in torch.nonzero(self._counts).flatten()
        }
