"""What the training cases of a dataset measure together: the ground a plan stands on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.datasets.facts import CaseFacts, ChannelFacts
from sparseg.datasets.sample_archive import default_cache
from sparseg.errors import DatasetError
from sparseg.volumes.atomic import write_bytes_atomically

Numbers = tuple[float, float, float]

# Changes whenever the same facts would give another fingerprint.
_VERSION = 1
_WHOLE = 0.01


@dataclass(frozen=True)
class Spread:
    """How a quantity is spread over the cases, one number per RAS axis.

    Attributes:
        minimum: Smallest value.
        p10: 10th percentile.
        median: Median.
        p90: 90th percentile.
        maximum: Largest value.
    """

    minimum: Numbers
    p10: Numbers
    median: Numbers
    p90: Numbers
    maximum: Numbers


@dataclass(frozen=True)
class ChannelFingerprint:
    """Intensities of one channel; the labelled voxels of all cases pooled, every case with equal weight.

    Attributes:
        minimum: Median over the cases of their smallest value, background included.
        whole_share: Share of the pooled quantiles that are whole numbers, as stored HU are.
        low: 0.5th percentile of the labelled voxels.
        high: 99.5th percentile of the labelled voxels.
        mean: Mean of the labelled voxels.
        deviation: Their standard deviation.
    """

    minimum: float
    whole_share: float
    low: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class Fingerprint:
    """What all training cases measure. Holds no names and no paths.

    The same cases give an equal fingerprint in any order, layout, file format and axis order.

    Attributes:
        key: SHA-256 of the sorted content keys of the cases.
        num_cases: Number of cases.
        shape: Voxels on RAS axes.
        spacing: Voxel edges in mm on RAS axes.
        body_shape: Voxels of the box around everything above -500 HU.
        nonzero_shape: Voxels of the box around everything that is not 0.
        channels: Intensities per channel.
        class_shares: Id -> share of all voxels, the mean over all cases.
        class_cases: Id -> number of cases that hold it.
    """

    key: str
    num_cases: int
    shape: Spread
    spacing: Spread
    body_shape: Spread
    nonzero_shape: Spread
    channels: tuple[ChannelFingerprint, ...]
    class_shares: dict[int, float]
    class_cases: dict[int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives back an equal record."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Fingerprint:
        """The reverse of `to_json`."""
        spreads = {
            name: Spread(**{level: tuple(numbers) for level, numbers in values[name].items()})
            for name in ("shape", "spacing", "body_shape", "nonzero_shape")
        }
        tables = {
            name: {int(label_id): number for label_id, number in values[name].items()}
            for name in ("class_shares", "class_cases")
        }
        channels = tuple(ChannelFingerprint(**channel) for channel in values["channels"])
        return cls(**{**values, **spreads, **tables, "channels": channels})


def fingerprint_key(facts: Sequence[CaseFacts]) -> str:
    """SHA-256 of the sorted content keys: the identity of a set of cases."""
    return hashlib.sha256("\n".join(sorted(case.content_key for case in facts)).encode()).hexdigest()


def make_fingerprint(facts: Sequence[CaseFacts]) -> Fingerprint:
    """Put the facts of all training cases together.

    Args:
        facts: One record per training case, in any order.

    Raises:
        DatasetError: no case, or cases with different numbers of channels.
    """
    # Sorted, so that not even the last digit of a mean depends on the order of the cases.
    cases = sorted(facts, key=lambda case: case.content_key)
    _require_same_channels(cases)
    shares, numbers = _classes(cases)
    return Fingerprint(
        key=fingerprint_key(cases),
        num_cases=len(cases),
        shape=_spread([case.shape for case in cases]),
        spacing=_spread([case.spacing for case in cases]),
        body_shape=_spread([case.body_shape for case in cases]),
        nonzero_shape=_spread([case.nonzero_shape for case in cases]),
        channels=tuple(_pool([case.channels[c] for case in cases]) for c in range(len(cases[0].channels))),
        class_shares=shares,
        class_cases=numbers,
    )


def load_or_make_fingerprint(facts: Sequence[CaseFacts], folder: Path | None = None) -> Fingerprint:
    """Return the fingerprint of these cases, from `folder` if it was made before.

    Args:
        facts: One record per training case, in any order.
        folder: Holds one `<key>.json` per set of cases; None takes `fingerprints` in the user's cache folder.

    Raises:
        DatasetError: as `make_fingerprint`.
    """
    folder = default_cache() / "fingerprints" if folder is None else folder
    file = folder / f"{fingerprint_key(facts)}.json"
    try:
        content = json.loads(file.read_bytes())
        if content["version"] == _VERSION:
            return Fingerprint.from_json(content["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there, or not whole: made again below
    fingerprint = make_fingerprint(facts)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": _VERSION, "fingerprint": fingerprint.to_json()}
    write_bytes_atomically(file, json.dumps(content, indent=1).encode())
    return fingerprint


def _require_same_channels(cases: Sequence[CaseFacts]) -> None:
    numbers = sorted({len(case.channels) for case in cases})
    if len(numbers) != 1:
        raise DatasetError(
            "a fingerprint needs training cases with one number of channels",
            received=f"{len(cases)} cases with {numbers or 'no'} channels",
            remedy="list labelled cases under training, all with the same channels",
            code="fingerprint-cases",
        )


def _spread(rows: Sequence[Sequence[float]]) -> Spread:
    levels = np.percentile(np.array(rows, np.float64), [0, 10, 50, 90, 100], axis=0)
    triples = [(float(a), float(b), float(c)) for a, b, c in levels]
    return Spread(*triples)


def _pool(channels: Sequence[ChannelFacts]) -> ChannelFingerprint:
    pooled = np.concatenate([np.array(channel.foreground_quantiles, np.float64) for channel in channels])
    minimum = float(np.median([channel.minimum for channel in channels]))
    if not pooled.size:
        return ChannelFingerprint(minimum, 0.0, 0.0, 0.0, 0.0, 0.0)
    low, high = np.percentile(pooled, [0.5, 99.5])
    whole = np.abs(pooled - np.round(pooled)) <= _WHOLE
    return ChannelFingerprint(
        minimum, float(whole.mean()), float(low), float(high), float(pooled.mean()), float(pooled.std())
    )


def _classes(cases: Sequence[CaseFacts]) -> tuple[dict[int, float], dict[int, int]]:
    """Mean share of the voxels, and number of cases, per id that occurs."""
    shares: dict[int, float] = {}
    numbers: dict[int, int] = {}
    for case in cases:
        counts = case.label_counts or {}
        total = sum(counts.values())
        for label_id, count in counts.items():
            if count:
                shares[label_id] = shares.get(label_id, 0.0) + count / total
                numbers[label_id] = numbers.get(label_id, 0) + 1
    ids = sorted(shares)
    return {i: shares[i] / len(cases) for i in ids}, {i: numbers[i] for i in ids}
