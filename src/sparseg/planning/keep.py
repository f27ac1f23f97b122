"""Rules on tokens: the keep ratio, and classes too small for the patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from sparseg.planning.choice import Choice
from sparseg.planning.patches import PatchFacts

MARGIN = 1.5
MIN_SHARE = 0.1
# Of the keep ratio, each of which a step may train with.
ELASTIC = (0.25, 0.5, 1.0, 2.0)
FEW_PATCHES, FEW_CASES = 4, 3


def choose_keep_ratio(cases: Sequence[PatchFacts], num_stages: int) -> Choice[float]:
    """Choose the keep ratio of every pruning stage.

    The share of tokens left at the end is 1.5 times the mean share of patches with a labelled voxel (which
    include all patches on a boundary), within 0.1 and 1. Each of the stages takes the same part in it; the
    ratio is rounded to 0.01.

    Args:
        cases: Patches of every case.
        num_stages: Pruning stages, at least 1.
    """
    foreground = fmean(case.foreground for case in cases)
    boundary = fmean(case.boundary for case in cases)
    share = min(1.0, max(MIN_SHARE, MARGIN * foreground))
    ratio = round(share ** (1 / num_stages), 2)
    why = (
        f"{100 * foreground:.1f} % of the patches hold a labelled voxel, {100 * boundary:.1f} % a boundary; "
        f"{MARGIN} times the former, at least {100 * MIN_SHARE:.0f} %, is to be left after "
        f"{num_stages} stage{'s' * (num_stages > 1)} ({100 * share:.1f} %; with this ratio "
        f"{100 * ratio**num_stages:.1f} %)"
    )
    return Choice(ratio, why)


def choose_elastic_keep(keep_ratio: float) -> Choice[tuple[float, ...]]:
    """Choose the keep ratios that one model is trained for: a quarter to twice its own, rounded to 0.01.

    Args:
        keep_ratio: Its own, of its one pruning stage.
    """
    ratios = {max(0.01, min(1.0, round(factor * keep_ratio, 2))) for factor in ELASTIC}
    why = (
        "every step trains with one of these keep ratios, so that predict's --keep-ratio and --deadline can "
        "choose among them afterwards"
    )
    return Choice(tuple(sorted(ratios)), why)


def small_classes(cases: Sequence[PatchFacts], labels: Mapping[int, str]) -> list[str]:
    """One line per class that few cases or few patches hold: its Dice will rest on little.

    Few are less than 3 cases, or a median of less than 4 patches in the cases that hold the class. A dataset
    of less than 3 cases gets one line for all classes that are in every case.

    Args:
        cases: Patches of every case.
        labels: Id -> name.
    """
    lines = []
    if len(cases) < FEW_CASES:
        lines.append(f"training cases: only {len(cases)}, so every class is in few")
    for label_id, name in labels.items():
        if label_id == 0:
            continue
        found = [case.per_class[label_id] for case in cases if label_id in case.per_class]
        text = f"{name} (id {label_id})"
        if not found:
            lines.append(f"{text} is in no training case")
            continue
        if len(found) < min(FEW_CASES, len(cases)):
            lines.append(f"{text} is in only {len(found)} of {len(cases)} training cases")
        if median(found) < FEW_PATCHES:
            lines.append(f"{text} fills only {median(found):g} patches (median of the cases that hold it)")
    return lines
