"""Rule for the intensity mapping: CT or MR per channel, and the CT window."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from sparseg.datasets.fingerprint import ChannelFingerprint
from sparseg.errors import DatasetError
from sparseg.planning.choice import Choice
from sparseg.preprocessing.config import CTIntensity, MRIntensity

Modality = Literal["ct", "mr"]

AIR_HU = -200.0
MIN_WINDOW_HU = 100
_CT_WORDS = {"ct", "cta", "ncct", "cect", "cbct", "hu"}
_MR_WORDS = {"mr", "mri", "mrt", "flair", "adc", "dwi", "swi", "pd", "dce", "bold", "cine"}
_MR_START = re.compile(r"t[12](?!\d)")


def channel_modality(name: str, channel: ChannelFingerprint) -> Choice[Modality]:
    """Decide whether a channel is CT or MR.

    A word of the name decides (CT, CTA, CBCT, ...; MR, MRI, T1, T1w, T2, FLAIR, ADC, ...). A name that says
    nothing leaves it to the values: CT where the cases' smallest value is below -200 (median) and at least
    half of the pooled quantiles are whole numbers, as stored HU are.

    Args:
        name: Name of the channel.
        channel: What it measures.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    is_ct = bool(words & _CT_WORDS)
    is_mr = bool(words & _MR_WORDS) or any(_MR_START.match(word) for word in words)
    if is_ct != is_mr:
        return Choice("ct" if is_ct else "mr", f"the channel is named {name}")
    if channel.minimum < AIR_HU and channel.whole_share >= 0.5:
        return Choice("ct", f"the values of {name} go down to {channel.minimum:.0f} in whole numbers")
    return Choice("mr", f"neither the name nor the values of {name} say CT")


def choose_intensity(
    names: Sequence[str], channels: Sequence[ChannelFingerprint]
) -> Choice[CTIntensity | MRIntensity]:
    """Choose the intensity mapping of all channels.

    CT is clipped at the 0.5th and 99.5th percentile of the labelled voxels (over all channels the lowest and
    the highest), in whole HU and at least 100 HU apart. MR has no scale of its own, so every channel of every
    image is standardised.

    Args:
        names: Names of the channels.
        channels: What each measures, in the same order.

    Raises:
        DatasetError: CT and MR channels together: there is one mapping for all.
    """
    found = [channel_modality(name, channel) for name, channel in zip(names, channels, strict=True)]
    kinds = {choice.value for choice in found}
    if len(kinds) > 1:
        listed = ", ".join(f"{name}: {choice.value}" for name, choice in zip(names, found, strict=True))
        raise DatasetError(
            "the channels of a dataset must be all CT or all MR, there is one intensity mapping",
            received=listed,
            remedy="leave channels out, or name them rightly in the dataset's description",
            code="modality-mixed",
        )
    if kinds == {"mr"}:
        why = f"{found[0].why}; every image is shifted and scaled to mean 0, deviation 1 of its own voxels"
        return Choice(MRIntensity(), why)
    low, high = min(channel.low for channel in channels), max(channel.high for channel in channels)
    clip = window_hu(low, high)
    why = f"{found[0].why}; 99 % of the labelled voxels lie between {low:.0f} and {high:.0f} HU"
    return Choice(CTIntensity(clip=clip), why)


def window_hu(low: float, high: float) -> tuple[float, float]:
    """Round a window to whole HU and widen it about its centre to at least 100 HU."""
    a, b = round(low), round(high)
    if b - a < MIN_WINDOW_HU:
        a = math.floor((low + high - MIN_WINDOW_HU) / 2)
        b = a + MIN_WINDOW_HU
    return float(a), float(b)
