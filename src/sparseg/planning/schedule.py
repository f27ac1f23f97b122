"""Rules on the course of training: steps, validations, epochs, mirroring."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from math import prod

from sparseg.planning.choice import Choice
from sparseg.shapes import Triple

STEPS_PER_CASE, MIN_STEPS, MAX_STEPS = 250, 500, 20_000
NUM_VALIDATIONS, MIN_INTERVAL = 20, 50
FLIP = 0.2
_SIDES = {"left": "right", "l": "r", "lt": "rt"}
_OTHER_SIDE = _SIDES | {right: left for left, right in _SIDES.items()}


def choose_max_steps(num_cases: int) -> Choice[int]:
    """250 steps per training case, at least 500 and at most 20000.

    Args:
        num_cases: Training cases of the dataset.
    """
    steps = min(MAX_STEPS, max(MIN_STEPS, STEPS_PER_CASE * num_cases))
    why = f"{STEPS_PER_CASE} per training case ({num_cases}), between {MIN_STEPS} and {MAX_STEPS}"
    return Choice(steps, why)


def choose_validate_every(max_steps: int) -> Choice[int]:
    """About 20 validations in a run, no two less than 50 steps apart."""
    every = max(MIN_INTERVAL, max_steps // NUM_VALIDATIONS)
    why = f"about {NUM_VALIDATIONS} validations in a run, at least {MIN_INTERVAL} steps apart"
    return Choice(every, why)


def steps_per_epoch(shapes: Sequence[Triple], roi: Triple, batch_size: int) -> int:
    """Steps whose crops hold as many voxels as all cases together: per case ceil(voxels / crop's voxels).

    Args:
        shapes: Prepared shape of every case.
        roi: Crop in voxels.
        batch_size: Crops per step.
    """
    crops = sum(-(-prod(shape) // prod(roi)) for shape in shapes)
    return math.ceil(crops / batch_size)


def choose_flips(names: Iterable[str]) -> Choice[tuple[float, float, float]]:
    """Probability of mirroring a crop per axis; none from right to left where two names differ in the side.

    A mirrored left kidney is a right kidney with the wrong label.

    Args:
        names: Names of all classes and regions.
    """
    pair = mirrored_pair(names)
    if pair is None:
        return Choice((FLIP, FLIP, FLIP), "no two classes are the left and right one of a pair")
    why = f"'{pair[0]}' and '{pair[1]}' are a pair: mirroring from right to left would swap their labels"
    return Choice((0.0, FLIP, FLIP), why)


def mirrored_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that differ in nothing but left and right (also L/R), or None."""
    seen = {tuple(_words(name)): name for name in names}
    for words, name in seen.items():
        for position, word in enumerate(words):
            if word in _OTHER_SIDE:
                other = (*words[:position], _OTHER_SIDE[word], *words[position + 1 :])
                if other in seen:
                    return name, seen[other]
    return None


def _words(name: str) -> list[str]:
    """Lower-case words; `LeftKidney` has two."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
