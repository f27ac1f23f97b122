"""Which patches of each class token selection keeps in evaluation, counted over whole cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparseg.checkpoints.card import ModelCard
from sparseg.datasets.cache_arrays import label_array
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.label_table import region_masks
from sparseg.datasets.load import load_case
from sparseg.errors import DatasetError
from sparseg.models.config import SegmenterConfig
from sparseg.predict.predictor import Predictor
from sparseg.preprocessing.pipeline import prepare
from sparseg.training.selection import PatchTargets, patch_targets
from sparseg.windows.plan import plan_windows
from sparseg.windows.sums import box_at

# Per pruning stage: group of patches -> (patches of the grid still present behind the stage, patches).
Counts = list[dict[str, tuple[int, int]]]


def kept_in_case(predictor: Predictor, case: Case, dataset: Dataset) -> Counts:
    """Count over windows without overlap that cover a case on the model's grid.

    Args:
        predictor: A model of ours; one that prunes no tokens gives an empty list.
        case: With labels.
        dataset: Names what its labels mean.

    Raises:
        DatasetError: the case has no labels.
    """
    card = predictor.card
    if not card.model.pruning_stages:
        return []
    image, labels = load_case(case, dataset)
    if labels is None:
        raise DatasetError("a case to count in needs labels", where=case.image, remedy="add its labels")
    prepared = prepare(image, card.preprocess, labels=labels)
    assert prepared.labels is not None
    pixels = torch.from_numpy(np.ascontiguousarray(prepared.image.array, dtype=np.float32))
    return count_kept(predictor, pixels, target_of(prepared.labels.array, card))


def count_kept(predictor: Predictor, image: Tensor, target: Tensor) -> Counts:
    """Count in one prepared image.

    Args:
        predictor: A model with pruning stages.
        image: `[C, H, W, D]`.
        target: `[1, H, W, D]` class numbers or `[R, H, W, D]` masks of regions.
    """
    card, device = predictor.card, predictor.settings.device
    config = card.model
    assert isinstance(config, SegmenterConfig)  # no other network has pruning stages
    plan = plan_windows(image, config.roi_size, 0.0, pad_value=card.preprocess.background_value)
    padded = F.pad(target, [n for pair in reversed(plan.padding) for n in pair])
    sums: Tensor | int = 0
    names = group_names(card)
    for start in plan.starts:
        box = (slice(None), *box_at(start, config.roi_size))
        targets = patch_targets(padded[box][None], config.patch_size, config.num_classes)
        groups = _groups(targets)
        with torch.inference_mode():
            _, decisions = predictor.net.with_decisions(plan.padded[box][None].to(device))
        sums = sums + _counted(groups, [decision.kept.cpu() for decision in decisions])
    assert isinstance(sums, Tensor)  # a volume has at least one window
    rows: list[list[list[int]]] = sums.tolist()
    return [{name: (kept, total) for name, (kept, total) in zip(names, row, strict=True)} for row in rows]


def group_names(card: ModelCard) -> list[str]:
    """Groups of patches: any label, a boundary, then every class or region of the model."""
    classes = list(card.regions) or [card.labels[number] for number in sorted(card.labels) if number]
    return ["foreground", "boundary", *classes]


def target_of(labels: np.ndarray, card: ModelCard) -> Tensor:
    """Ids `[1, H, W, D]` -> what the network is trained on: class numbers, or masks of regions."""
    if card.regions:
        return torch.from_numpy(region_masks(labels[0], card.regions)).float()
    return torch.from_numpy(label_array(labels, tuple(sorted(card.labels))).astype(np.int64))


def shares(cases: Sequence[Counts]) -> list[dict[str, float | None]]:
    """Per stage the share of each group's patches, over all cases together; None where there are none."""
    if not cases or not cases[0]:
        return []
    return [
        {name: _share([case[stage][name] for case in cases]) for name in cases[0][stage]}
        for stage in range(len(cases[0]))
    ]


def as_json(counts: Counts) -> list[dict[str, list[int]]]:
    """Counts as JSON keeps them."""
    return [{name: list(pair) for name, pair in stage.items()} for stage in counts]


def from_json(content: Sequence[Mapping[str, Sequence[int]]]) -> Counts:
    """What `as_json` made."""
    return [{name: (int(kept), int(total)) for name, (kept, total) in stage.items()} for stage in content]


def _share(pairs: Sequence[tuple[int, int]]) -> float | None:
    total = sum(number for _, number in pairs)
    return sum(kept for kept, _ in pairs) / total if total else None


def _groups(targets: PatchTargets) -> Tensor:
    """bool [G, L]."""
    return torch.cat((targets.foreground, targets.boundary, targets.classes[0]))


def _counted(groups: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """Members present behind each stage, and members: int64 [stages, G, 2]."""
    totals = groups.sum(dim=1)
    rows = []
    for indices in kept:
        present = torch.zeros(groups.shape[1], dtype=torch.bool).scatter(0, indices[0], value=True)
        rows.append(torch.stack(((groups & present).sum(dim=1), totals), dim=1))
    return torch.stack(rows)
