"""What a model's card says about its windows: what is empty, and along which axes they may be mirrored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from sparseg.checkpoints.card import ModelCard
from sparseg.errors import ConfigError
from sparseg.preprocessing.config import CT_FOREGROUND_HU, CTIntensity
from sparseg.windows.body import BodyRule
from sparseg.windows.empty import EmptyRule

Mirror = Literal["lr", "ap", "si"]
# Axes of the model grid, which is always right, anterior, superior.
_AXES: dict[Mirror, int] = {"lr": 0, "ap": 1, "si": 2}
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)

# Share of the clip range (2 in prepared values) that is still air: 13 HU of the paper's abdominal setting.
CT_TOLERANCE = 0.02
# Far enough for a probability of 0.999 among a dozen classes, near enough not to outweigh a neighbour's
# logits when they are interpolated.
BACKGROUND_LOGIT = 10.0


def empty_rule(card: ModelCard) -> EmptyRule | None:
    """Windows in which every voxel is at the clip minimum (CT, within 1 % of the range) or zero (MR).

    A voxel that only such windows cover becomes background. Voxels with content, and those within 2 voxels of
    one, keep their very logits; see `EmptyRule`. What can change is what a network saw in pure background,
    at least 3 voxels away from anything. None, so that no window is skipped, for a model without background.

    Measured with the CT sample and its model: cropped to the body, no window of 80 x 80 x 32 is empty (0 of
    36 and of 18) and nothing changes. With 48 voxels of air added on all sides, 40 of 240 and 90 of 180
    windows are skipped; no label of a voxel with content changes (its logits are equal bit for bit), and
    1,164 of 59,033 and 1,549 of 23,150 labelled voxels, none of them with content, become background.
    """
    if card.regions:
        logits = (-BACKGROUND_LOGIT,) * len(card.regions)
    elif 0 not in card.labels:
        return None
    else:
        logits = tuple(BACKGROUND_LOGIT if label == 0 else 0.0 for label in sorted(card.labels))
    is_ct = isinstance(card.preprocess.intensity, CTIntensity)
    return EmptyRule(card.preprocess.background_value, logits, CT_TOLERANCE if is_ct else 0.0)


def skip_rules(
    card: ModelCard, *, keep_empty: bool, body_only: bool
) -> tuple[EmptyRule | None, BodyRule | None]:
    """Which windows are empty, and which part of the image windows are laid over; None for all.

    Raises:
        ConfigError: both asked for, or a model that cannot be run over the body only.
    """
    if keep_empty and body_only:
        raise ConfigError(
            "windows are either kept though empty, or run over the body only",
            received="both",
            remedy="leave one out",
            where="body_only",
            code="body-only",
        )
    return None if keep_empty else empty_rule(card), body_rule(card) if body_only else None


def body_rule(card: ModelCard) -> BodyRule:
    """What counts as body in a CT: above -500 HU, or above the clip minimum where that is higher.

    Raises:
        ConfigError: not a model for CT, or one without background.
    """
    intensity = card.preprocess.intensity
    if not isinstance(intensity, CTIntensity) or (0 not in card.labels and not card.regions):
        raise ConfigError(
            "only a model for CT that knows background can be run over the body only",
            received="a model for MR" if not isinstance(intensity, CTIntensity) else "no label 0",
            remedy="leave --body-only out",
            where="body_only",
            code="body-only",
        )
    low, high = intensity.clip
    return BodyRule(max(2 * (CT_FOREGROUND_HU - low) / (high - low) - 1, -1 + CT_TOLERANCE))


def mirror_axes(mirror: Sequence[Mirror], card: ModelCard) -> tuple[int, ...]:
    """Voxel axes of the model grid to mirror along, in ascending order.

    Args:
        mirror: Any of `lr` (left-right), `ap` (front-back) and `si` (up-down).
        card: The model's card.

    Raises:
        ConfigError: left-right, though the model has labels of one side: it would name the wrong one.
    """
    names = [*card.labels.values(), *card.regions]
    sided = [name for name in names if _SIDE.search(name)]
    if "lr" in mirror and sided:
        raise ConfigError(
            "a model that tells left from right must not be mirrored along the left-right axis",
            received=f"lr with the label(s) {', '.join(sided)}",
            remedy="mirror along ap and si only",
            where="mirror",
            code="mirror-sides",
        )
    return tuple(sorted({_AXES[name] for name in mirror}))
