"""What token selection does to the labelled structures: numbers per stage for the training log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sparseg.shapes import Triple
from sparseg.tokens.select import hard_topk
from sparseg.tokens.stages import StageScores
from sparseg.training.selection import PatchTargets, patch_targets


@torch.no_grad()
def selection_stats(
    stage_scores: Sequence[StageScores], target: Tensor, patch_size: Triple, num_classes: int
) -> dict[str, float]:
    """Describe the selection of one batch; one transfer from the device.

    Keys, with stages counted from 1 and classes by their output channel:

    - `tokens/0`, `tokens/1`, ...: patch tokens of one image at the start and after each stage.
    - `agreement/1`: share of the kept tokens that evaluation, given the same tokens, would keep too (no
      noise, no protection).
    - `kept/1/foreground`, `kept/1/boundary`, `kept/1/class 3`: share of such patches of the whole grid that
      are still present after the stage; NaN where the batch has none.
    - `kept_eval/1/...`: the same had this stage selected as evaluation does. Lower than `kept` means that
      protection or luck keeps what the scores would lose.

    Args:
        stage_scores: As returned by the network, in stage order.
        target: `[B, 1, H, W, D]` ids or `[B, K, H, W, D]` region masks.
        patch_size: Patch edges in voxels.
        num_classes: K, outputs of the model.

    Returns:
        The same keys for every batch of a model.
    """
    targets = patch_targets(target, patch_size, num_classes)
    names, wanted = _groups(targets, num_classes)
    keys, values = ["tokens/0"], [_as_scalar(targets.boundary.shape[1], wanted)]
    for number, stage in enumerate(stage_scores, start=1):
        chosen = stage.indices.gather(1, hard_topk(stage.scores, stage.kept.shape[1])[0])
        trained, evaluated = (_marked(indices, wanted) for indices in (stage.kept, chosen))
        keys += [f"tokens/{number}", f"agreement/{number}"]
        values += [
            _as_scalar(stage.kept.shape[1], wanted),
            (trained & evaluated).sum().float() / trained.sum(),
        ]
        for kind, marks in (("kept", trained), ("kept_eval", evaluated)):
            keys += [f"{kind}/{number}/{name}" for name in names]
            values += ((wanted & marks[:, None]).sum(dim=(0, 2)).float() / wanted.sum(dim=(0, 2))).unbind()
    return dict(zip(keys, torch.stack(values).tolist(), strict=True))


def merge_stats(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each key over the rows where it is a number; NaN where it never is."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row in rows:
        for key, value in row.items():
            known = not math.isnan(value)
            sums[key] = sums.get(key, 0.0) + (value if known else 0.0)
            counts[key] = counts.get(key, 0) + known
    return {key: total / counts[key] if counts[key] else math.nan for key, total in sums.items()}


def _groups(targets: PatchTargets, num_classes: int) -> tuple[list[str], Tensor]:
    """Names of the groups of patches, and their members, bool `[B, G, L]`."""
    first = num_classes - targets.classes.shape[1]
    names = ["foreground", "boundary", *(f"class {number}" for number in range(first, num_classes))]
    two = torch.stack((targets.foreground, targets.boundary), dim=1)
    return names, torch.cat((two, targets.classes), dim=1)


def _marked(indices: Tensor, like: Tensor) -> Tensor:
    """Grid positions [B, k] -> bool [B, L]."""
    marks = torch.zeros(like.shape[0], like.shape[2], dtype=torch.bool, device=like.device)
    return marks.scatter(1, indices, value=True)


def _as_scalar(count: int, like: Tensor) -> Tensor:
    return torch.full((), count, dtype=torch.float32, device=like.device)
