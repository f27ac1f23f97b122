"""Token selection while training: schedules, what the labels say about patches, and the score loss.

Shapes: target `[B, 1, H, W, D]` class ids, or `[B, K, H, W, D]` masks of overlapping regions; L = h·w·d
patches in row-major grid order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseg.errors import ConfigError, ShapeError
from sparseg.models.config import SegmenterConfig
from sparseg.models.network import NetworkConfig
from sparseg.shapes import Triple, num_tokens
from sparseg.tokens.embed import cut_patches
from sparseg.tokens.scoring import LEARNED
from sparseg.tokens.stages import Selection, StageScores
from sparseg.training.selection_config import ScoreTarget, SelectionConfig


class PatchTargets(NamedTuple):
    """What the labels say about each patch.

    Attributes:
        boundary: bool `[B, L]`, the patch holds more than one label (or a region's edge).
        foreground: bool `[B, L]`, it holds any labelled voxel.
        classes: bool `[B, K', L]`, it holds a voxel of class 1..K-1 (K' = K - 1), or of region 0..K-1
            (K' = K).
    """

    boundary: Tensor
    foreground: Tensor
    classes: Tensor


def selection_at(
    config: SelectionConfig,
    model_config: SegmenterConfig,
    progress: float,
    target: Tensor | None = None,
    *,
    draw: float = 0.0,
) -> Selection:
    """Selection settings of one training step.

    Args:
        config: Settings.
        model_config: The network's.
        progress: Share of the run that is over, 0 to 1.
        target: Labels of the batch; only needed where patches are protected.
        draw: From 0 to below 1, the place of the step's keep ratio among the elastic ones.
    """
    protected = None
    if target is not None and config.protect_min_patches and model_config.pruning_stages:
        targets = patch_targets(target, model_config.patch_size, model_config.num_classes)
        protected = protected_patches(targets.classes, config.protect_min_patches)
    return Selection(
        temperature=temperature_at(config, model_config.temperature, progress),
        keep_ratios=keep_ratios_at(config, model_config, progress, draw),
        protected=protected,
    )


def temperature_at(config: SelectionConfig, default: float, progress: float) -> float | None:
    """Temperature of the soft top-k at `progress`; None where no schedule is set."""
    if config.temperature_start is None and config.temperature_end is None:
        return None
    start, end = config.temperature_start or default, config.temperature_end or default
    way = min(max(progress, 0.0), 1.0)
    if config.temperature_schedule == "cosine":
        way = 0.5 * (1 - math.cos(math.pi * way))
    return start + (end - start) * way


def step_draw(seed: int, step: int) -> float:
    """A number from 0 to below 1 for each step of a run, the same in all its processes."""
    return random.Random(f"{seed}/{step}").random()


def keep_ratios_at(
    config: SelectionConfig, model_config: SegmenterConfig, progress: float, draw: float = 0.0
) -> tuple[float, ...] | None:
    """Keep ratio of each stage at `progress`; None once (or where) the model's own apply.

    Level j of n levels, j = floor(n · progress / warmup_share), lies j/n of the way from `warmup_keep` to the
    ratio of the step: the model's, or the elastic one at place `draw`. No stage ever keeps less than that.
    """
    progress, elastic, stages = max(progress, 0.0), config.elastic_keep, len(model_config.pruning_stages)
    if not stages:
        return None
    own = (elastic[int(draw * len(elastic))],) * stages if elastic else None
    if progress >= config.warmup_share:
        return own
    level = math.floor(config.warmup_levels * progress / config.warmup_share)
    way = level / config.warmup_levels
    return tuple(
        max(own, round(config.warmup_keep + (own - config.warmup_keep) * way, 4))
        for own in own or _own_ratios(model_config)
    )


def _own_ratios(model_config: SegmenterConfig) -> tuple[float, ...]:
    """The model's keep ratios; those its absolute counts amount to in a window of the roi size."""
    if model_config.num_keep is None:
        return model_config.keep_ratios
    present = (num_tokens(model_config.grid), *model_config.num_keep)
    return tuple(after / before for before, after in pairwise(present))


def patch_targets(target: Tensor, patch_size: Triple, num_classes: int) -> PatchTargets:
    """Pool labels over patches; no device synchronisation.

    Args:
        target: `[B, 1, H, W, D]` ids 0..K-1, or `[B, K, H, W, D]` region masks.
        patch_size: Patch edges in voxels (H, W, D).
        num_classes: K, outputs of the model.

    Raises:
        ShapeError: neither one channel nor K, or edges that are no multiples of the patch edges.
    """
    if target.ndim != 5 or target.shape[1] not in (1, num_classes):
        raise ShapeError(
            f"labels must be [B, 1, H, W, D] ids or [B, {num_classes}, H, W, D] region masks",
            received=tuple(target.shape),
            remedy="give the label as the loss takes it",
        )
    cubes = cut_patches(target, patch_size)
    if target.shape[1] == num_classes:
        masks = cubes > 0.5
        classes, full = masks.any(dim=3), masks.all(dim=3)
        return PatchTargets((classes & ~full).any(dim=1), classes.any(dim=1), classes)
    ids = cubes[:, 0].long()
    # Marking the ids that occur costs B·L·K flags, where one mask per class would cost K volumes.
    present = torch.zeros(*ids.shape[:2], num_classes, dtype=torch.bool, device=ids.device)
    present = present.scatter(2, ids, value=True)
    lowest, highest = ids.aminmax(dim=2)
    return PatchTargets(lowest != highest, highest > 0, present[:, :, 1:].transpose(1, 2))


def protected_patches(classes: Tensor, min_patches: int) -> Tensor:
    """Patches of the classes that have few.

    Args:
        classes: bool `[B, K', L]`, see `PatchTargets`.
        min_patches: A class with at most this many patches in its crop is protected.

    Returns:
        bool `[B, L]`.
    """
    few = classes.sum(dim=2, keepdim=True) <= min_patches
    return (classes & few).any(dim=1)


def wanted_patches(targets: PatchTargets, score_target: ScoreTarget | None) -> Tensor:
    """The patches that the score loss wants ahead, bool `[B, L]`; None is "boundary"."""
    return targets.foreground if score_target == "foreground" else targets.boundary


def score_loss(stage_scores: Sequence[StageScores], wanted: Tensor, temperature: float = 0.5) -> Tensor:
    """Teach the scores to rank wanted patches first; mean over stages and images.

    Scores have no fixed zero: the default transform makes their mean 0 and spread 1 whatever the share of
    wanted patches. So the logit of a token is its score minus the threshold above which as many tokens lie as
    are wanted among those present: (s - t)/tau, and the loss is binary cross-entropy on it, wanted and other
    tokens weighing half each. It falls towards 0 only where the wanted tokens are the highest, does not
    depend on the number kept (so it teaches during a warm-up that prunes nothing), and its gradient sums to 0
    per row. An image whose tokens are all wanted or all not has nothing to rank and counts as 0, so that
    a mean over processes is the mean over the whole batch.

    Args:
        stage_scores: As returned by the network, in stage order.
        wanted: bool `[B, L]`.
        temperature: tau of the logits, in units of the scores.

    Returns:
        Scalar; 0 for a model without pruning stages.
    """
    losses = [
        _ranking_loss(stage.scores, wanted.gather(1, stage.indices), temperature) for stage in stage_scores
    ]
    return torch.stack(losses).mean() if losses else wanted.new_zeros((), dtype=torch.float32)


def require_trainable_scores(model: NetworkConfig, selection: SelectionConfig) -> None:
    """Refuse losses that could teach nothing.

    Raises:
        ConfigError: a score loss on scores without weights, or a ratio loss without gates.
    """
    if not isinstance(model, SegmenterConfig) or not model.pruning_stages:
        return
    for name, fits in (
        ("score_weight", (*LEARNED, "class_attention")),
        ("ratio_weight", ("gates",)),
    ):
        if getattr(selection, name) and model.scoring not in fits:
            raise ConfigError(
                f"a {name} needs a scoring that it can train ({', '.join(fits)})",
                received=f"scoring {model.scoring}",
                remedy="set it to 0, or choose such a scoring",
                where=f"selection.{name}",
            )


def ratio_loss(stage_scores: Sequence[StageScores]) -> Tensor:
    """Teach independent gates to let as many tokens pass as evaluation keeps.

    Mean over images and stages of (rho_s - mean of the weights)², rho_s being the share of the whole grid
    that is to be left after stage s (Rao et al., NeurIPS 2021, section 3.4).

    Args:
        stage_scores: Of a network with scoring `gates` in training, whose stages have weights.

    Returns:
        Scalar.
    """
    losses = [
        (stage.kept.shape[1] / stage.weight.shape[1] - stage.weight.mean(dim=1)).square().mean()
        for stage in stage_scores
        if stage.weight is not None
    ]
    return torch.stack(losses).mean()


def _ranking_loss(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    # The row's mean carries the gradient of a shift, which must stay nil where the threshold is a constant.
    centred = scores - scores.mean(dim=1, keepdim=True)
    logits = (centred - _threshold(centred.detach(), wanted)) / temperature
    ahead, behind = wanted.to(scores.dtype), (~wanted).to(scores.dtype)
    has_both = wanted.any(dim=1) & (~wanted).any(dim=1)
    loss_ahead = (ahead * F.softplus(-logits)).sum(dim=1) / ahead.sum(dim=1).clamp_min(1)
    loss_behind = (behind * F.softplus(logits)).sum(dim=1) / behind.sum(dim=1).clamp_min(1)
    return (0.5 * (loss_ahead + loss_behind) * has_both).mean()


def _threshold(scores: Tensor, wanted: Tensor) -> Tensor:
    """Half-way between the m-th and the next highest score, m = number wanted in the row; `[B, 1]`."""
    ordered = scores.sort(dim=1, descending=True).values
    count = wanted.sum(dim=1, keepdim=True)
    last = scores.shape[1] - 1
    inside, outside = (count - 1).clamp(0, last), count.clamp(0, last)
    return 0.5 * (ordered.gather(1, inside) + ordered.gather(1, outside))
