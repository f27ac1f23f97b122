"""From a batch to the loss that is minimised, and to what the log says of the token selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sparseg.datasets.cache import CachedCase
from sparseg.datasets.dataset import Dataset
from sparseg.models.config import SegmenterConfig
from sparseg.models.network import Network, NetworkConfig
from sparseg.training.config import TrainConfig
from sparseg.training.losses import make_loss
from sparseg.training.selection import (
    patch_targets,
    ratio_loss,
    score_loss,
    selection_at,
    step_draw,
    wanted_patches,
)
from sparseg.training.selection_stats import selection_stats
from sparseg.training.teacher import Teacher


class Objective:
    """Segmentation loss, and the losses on scores and gates where they are switched on.

    Args:
        model: Settings of the network.
        config: Settings of the run.
        dataset: Classes or regions.
        cases: Training cases, for class weights by frequency.
        teacher: A network whose logits are learnt from besides; None has none.
    """

    def __init__(
        self,
        model: NetworkConfig,
        config: TrainConfig,
        dataset: Dataset,
        cases: Sequence[CachedCase],
        teacher: Network | None = None,
    ) -> None:
        # What selects tokens; None has none to select.
        self.sparse = model if isinstance(model, SegmenterConfig) and model.pruning_stages else None
        self.config = config
        self.loss = make_loss(
            config.loss, regions=bool(dataset.regions), num_voxels=voxels_per_output(dataset, cases)
        )

        self.teacher: Teacher | None = None
        if teacher is not None and config.distill.weight:
            self.teacher = Teacher(teacher, config.distill, regions=bool(dataset.regions))

    def _taught(self, logits: Tensor | list[Tensor], image: Tensor) -> Tensor | float:
        return 0.0 if self.teacher is None else self.teacher.loss(logits, image)

    def __call__(
        self,
        network: Callable[..., Any],
        image: Tensor,
        target: Tensor,
        progress: float,
        *,
        step: int = 0,
        with_stats: bool = False,
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and statistics of the selection (empty unless asked for).

        Args:
            network: The network, wrapped or compiled.
            image: `[B,C,H,W,D]`.
            target: Ids `[B,1,H,W,D]`, or masks `[B,R,H,W,D]` of regions.
            progress: Share of the run that is over.
            step: Number of the step, which decides its elastic keep ratio.
            with_stats: Whether to compute the statistics.
        """
        if self.sparse is None:
            logits = network(image)
            return self.loss(logits, target) + self._taught(logits, image), {}
        settings = self.config.selection.for_scoring(self.sparse.scoring)
        draw = step_draw(self.config.seed, step)
        choice = selection_at(settings, self.sparse, progress, target, draw=draw)
        logits, _, decisions = network(image, return_selection=True, selection=choice)
        loss = self.loss(logits, target) + self._taught(logits, image)
        patch, outputs = self.sparse.patch_size, self.sparse.num_classes
        if settings.score_weight:
            wanted = wanted_patches(patch_targets(target, patch, outputs), settings.score_target)
            loss = loss + settings.score_weight * score_loss(decisions, wanted, self.sparse.temperature)
        if settings.ratio_weight:
            loss = loss + settings.ratio_weight * ratio_loss(decisions)
        return loss, selection_stats(decisions, target, patch, outputs) if with_stats else {}


def voxels_per_output(dataset: Dataset, cases: Sequence[CachedCase]) -> list[int]:
    """Voxels of each output of the network (classes with the background, or regions) over all cases."""
    counts: dict[int, int] = {}
    for case in cases:
        for number, voxels in case.record.class_counts.items():
            counts[number] = counts.get(number, 0) + voxels
    if dataset.regions:
        return [sum(counts.get(i, 0) for i in ids) for ids in dataset.regions.values()]
    return [counts.get(number, 0) for number in range(len(dataset.labels))]
