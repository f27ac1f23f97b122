"""What one case measures, on RAS axes: the same numbers in whatever format or axis order it is stored."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from sparseg.preprocessing.config import CT_FOREGROUND_HU
from sparseg.preprocessing.crop import foreground_box
from sparseg.preprocessing.orientation import ras_axes, reorient, reorient_affine
from sparseg.shapes import Triple
from sparseg.volumes.geometry import axis_codes, spacing_of
from sparseg.volumes.volume import Volume

NUM_QUANTILES = 201
_DECIMALS_MM = 3
_SLAB = 64
_BLOCK = (8, 16)
_CHUNK = 2**22
_MAX_TABLE = 2**16


@dataclass(frozen=True)
class ChannelFacts:
    """Intensities of one channel.

    Attributes:
        minimum: Smallest value.
        maximum: Largest value.
        nonzero_share: Share of voxels that are not 0.
        mean: Mean over the voxels that are not 0.
        deviation: Standard deviation over the voxels that are not 0.
        foreground_quantiles: 201 evenly spaced quantiles (0, 0.5, ..., 100 %) over the labelled voxels; over
            the voxels that are not 0 where nothing is labelled; empty where all are 0.
    """

    minimum: float
    maximum: float
    nonzero_share: float
    mean: float
    deviation: float
    foreground_quantiles: tuple[float, ...]


@dataclass(frozen=True)
class CaseFacts:
    """One case. Holds nothing that could identify a patient: no names, dates or paths.

    Attributes:
        shape: Voxels on RAS axes.
        spacing: Voxel edges in mm on RAS axes, rounded to 0.001.
        codes: Directions of the stored axes, such as "LPS".
        affine: The 16 numbers of the RAS-ordered affine, row by row, rounded to 0.001 mm.
        body_shape: Voxels of the box around everything above -500 HU (meaningful for CT).
        nonzero_shape: Voxels of the box around everything that is not 0.
        channels: Intensities per channel.
        label_counts: Voxels per id, None without labels.
        image_hash: SHA-256 of the image's voxels on RAS axes.
        label_hash: SHA-256 of the ids on RAS axes, empty without labels.
    """

    shape: Triple
    spacing: tuple[float, float, float]
    codes: str
    affine: tuple[float, ...]
    body_shape: Triple
    nonzero_shape: Triple
    channels: tuple[ChannelFacts, ...]
    label_counts: dict[int, int] | None
    image_hash: str
    label_hash: str

    @property
    def content_key(self) -> str:
        """Hash of voxels, labels and place: equal for the same case in any layout or file format."""
        return _content_key(self.image_hash, self.label_hash, self.shape, self.affine)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives back an equal record."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CaseFacts:
        """The reverse of `to_json`."""
        counts = values["label_counts"]
        channels = tuple(
            ChannelFacts(**{**channel, "foreground_quantiles": tuple(channel["foreground_quantiles"])})
            for channel in values["channels"]
        )
        lists = ("shape", "spacing", "affine", "body_shape", "nonzero_shape")
        return cls(
            **{
                **values,
                **{name: tuple(values[name]) for name in lists},
                "channels": channels,
                "label_counts": None if counts is None else {int(k): int(v) for k, v in counts.items()},
            }
        )


def measure(image: Volume, labels: Volume | None) -> CaseFacts:
    """Measure a case.

    Args:
        image: `[C,H0,W0,D0]`, finite, in its own units and axis order.
        labels: `[1,H0,W0,D0]` ids on the image's grid, or None.
    """
    array, ids, affine = _on_ras_axes(image, labels)
    spacing = tuple(round(float(edge), _DECIMALS_MM) for edge in spacing_of(affine))
    marks = None if labels is None else _flat(labels.array[0])
    return CaseFacts(
        shape=array.shape[1:],
        spacing=(spacing[0], spacing[1], spacing[2]),
        codes=axis_codes(image.affine),
        affine=_rounded(affine),
        body_shape=_box_shape(array, CT_FOREGROUND_HU),
        nonzero_shape=_box_shape(array, None),
        channels=tuple(_measure_channel(_flat(channel), marks) for channel in image.array),
        label_counts=None if marks is None else _count(marks),
        image_hash=_hash(array, "<f4"),
        label_hash="" if ids is None else _hash(ids[None], "<i4"),
    )


def content_key_of(image: Volume, labels: Volume | None) -> str:
    """Return `measure(image, labels).content_key` without measuring the rest."""
    array, ids, affine = _on_ras_axes(image, labels)
    label_hash = "" if ids is None else _hash(ids[None], "<i4")
    return _content_key(_hash(array, "<f4"), label_hash, array.shape[1:], _rounded(affine))


def _content_key(image_hash: str, label_hash: str, shape: Triple, affine: tuple[float, ...]) -> str:
    text = repr((image_hash, label_hash, shape, affine))
    return hashlib.sha256(text.encode()).hexdigest()


def _on_ras_axes(image: Volume, labels: Volume | None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Image `[C,H,W,D]`, ids `[H,W,D]` or None, and the affine of both."""
    permutation, flips = ras_axes(image.affine)
    ids = None if labels is None else reorient(labels.array, permutation, flips)[0]
    affine = reorient_affine(image.affine, image.shape, permutation, flips)
    return reorient(image.array, permutation, flips), ids, affine


def _rounded(affine: np.ndarray) -> tuple[float, ...]:
    # 0.0 is added so that a rounded -0.0 does not change the content key.
    return tuple(round(float(value), _DECIMALS_MM) + 0.0 for value in affine.reshape(-1))


def _flat(array: np.ndarray) -> np.ndarray:
    """The voxels `[H,W,D]` in one row, first axis fastest: no copy of what the readers return."""
    return array.T.reshape(-1)


def _count(ids: np.ndarray) -> dict[int, int]:
    """Voxels per id of flat ids, chunk by chunk: sorting them all would take longer than reading them."""
    counts: Counter[int] = Counter()
    for start in range(0, ids.size, _CHUNK):
        chunk = ids[start : start + _CHUNK]
        if int(chunk.max()) < _MAX_TABLE and int(chunk.min()) >= 0:
            numbers = np.bincount(chunk)
            present = np.flatnonzero(numbers)
            numbers = numbers[present]
        else:
            present, numbers = np.unique(chunk, return_counts=True)
        counts.update(dict(zip(present.tolist(), numbers.tolist(), strict=True)))
    return dict(sorted(counts.items()))


def _measure_channel(channel: np.ndarray, ids: np.ndarray | None) -> ChannelFacts:
    """Measure flat voxels; flat ids say what is labelled."""
    # Sorted values, so that the axis order of the file cannot change a sum's last digit.
    nonzero = channel[channel != 0]
    nonzero.sort()
    foreground = nonzero
    if ids is not None and ids.any():
        foreground = channel[ids > 0]
        foreground.sort()
    mean, deviation = _moments(nonzero)
    return ChannelFacts(
        minimum=float(channel.min()),
        maximum=float(channel.max()),
        nonzero_share=nonzero.size / channel.size,
        mean=mean,
        deviation=deviation,
        foreground_quantiles=_quantiles(foreground),
    )


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation in float64, chunk by chunk; 0 and 0 of no values."""
    if not values.size:
        return 0.0, 0.0
    chunks = range(0, values.size, _CHUNK)
    mean = sum(float(values[i : i + _CHUNK].sum(dtype=np.float64)) for i in chunks) / values.size
    squares = sum(float(np.square(values[i : i + _CHUNK].astype(np.float64) - mean).sum()) for i in chunks)
    return mean, float(np.sqrt(squares / values.size))


def _quantiles(ordered: np.ndarray) -> tuple[float, ...]:
    """The 201 quantiles of sorted values, linear between neighbours; empty of no values."""
    if not ordered.size:
        return ()
    places = np.linspace(0, ordered.size - 1, NUM_QUANTILES)
    below = np.floor(places).astype(np.int64)
    low = ordered[below].astype(np.float64)
    high = ordered[np.minimum(below + 1, ordered.size - 1)].astype(np.float64)
    quantiles: list[float] = (low + (high - low) * (places - below)).tolist()
    return tuple(quantiles)


def _box_shape(array: np.ndarray, threshold: float | None) -> Triple:
    start, stop = foreground_box(array, threshold=threshold, spacing=(1.0, 1.0, 1.0), margin_mm=0)
    return (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])


def _hash(array: np.ndarray, dtype: str) -> str:
    """SHA-256 of shape and values in C order, slab by slab."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for channel in array:
        for start in range(0, channel.shape[0], _SLAB):
            slab = _in_c_order(channel[start : start + _SLAB], dtype)
            # -0.0 and 0.0 are the same value but not the same bytes.
            digest.update((slab + slab.dtype.type(0)).tobytes())
    return digest.hexdigest()


def _in_c_order(slab: np.ndarray, dtype: str) -> np.ndarray:
    """Copy a slab with its last axis fastest, in pieces that fit the processor's cache."""
    copy = np.empty(slab.shape, dtype)
    for second, third in product(range(0, slab.shape[1], _BLOCK[0]), range(0, slab.shape[2], _BLOCK[1])):
        block = (slice(None), slice(second, second + _BLOCK[0]), slice(third, third + _BLOCK[1]))
        copy[block] = slab[block]
    return copy
