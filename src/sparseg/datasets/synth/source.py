"""The labelled volume that subjects are made from, prepared once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseg.datasets.synth.config import SynthConfig
from sparseg.datasets.synth.tissues import divide_by_intensity, divide_into_blobs
from sparseg.errors import ConfigError, LabelError
from sparseg.volumes.geometry import require_same_grid
from sparseg.volumes.volume import Volume

_MR_TOP = 1000.0


@dataclass(frozen=True)
class Source:
    """What every subject needs of the labelled volume.

    Attributes:
        tissues: `[H,W,D]` uint16 index of the tissue; 0 is the darkest part of the unlabelled rest.
        label_ids: `[T]` int32 label id of each tissue, 0 for parts of the rest.
        means: `[T]` mean of each tissue in the first channel; zeros without image.
        deviations: `[T]` standard deviation likewise.
        image: `[C,H,W,D]` float32, in HU, or scaled to 0 to 1000 for MR; None if not given.
        affine: 4x4, voxel -> RAS mm.
    """

    tissues: np.ndarray
    label_ids: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    image: np.ndarray | None
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel edges in mm `[3]`."""
        lengths: np.ndarray = np.linalg.norm(self.affine[:3, :3], axis=0)
        return lengths


def prepare_source(image: Volume | None, labels: Volume, config: SynthConfig) -> Source:
    """Divide a labelled volume into tissues and measure them.

    Args:
        image: `[C,H,W,D]`, finite, or None.
        labels: `[1,H,W,D]` ids.
        config: Settings.

    Raises:
        LabelError: nothing is labelled.
        GeometryError: image and labels on different grids.
        ConfigError: settings that need an image, or one channel.
    """
    _check(image, labels, config)
    ids = labels.array[0]
    present = np.unique(ids[ids > 0])
    spacing = np.array(labels.spacing)
    if image is None:
        rng = np.random.default_rng((config.seed, 2**32))
        rest = divide_into_blobs(ids.shape, spacing, config.background_classes, rng)
    else:
        rest = divide_by_intensity(image.array[0].astype(np.float32), ids == 0, config.background_classes)
    num_rest = int(rest[ids == 0].max(initial=0)) + 1
    tissues = np.where(ids > 0, num_rest + np.searchsorted(present, ids), rest).astype(np.uint16)
    label_ids = np.concatenate([np.zeros(num_rest, np.int32), present.astype(np.int32)])
    array = None if image is None else _scaled(image.array, config)
    means, deviations = _measure(tissues, len(label_ids), array)
    return Source(tissues, label_ids, means, deviations, array, labels.affine)


def _check(image: Volume | None, labels: Volume, config: SynthConfig) -> None:
    if not (labels.array > 0).any():
        raise LabelError(
            "the source must have at least one labelled structure",
            received="background only",
            remedy="name the label file of a labelled case",
            where=labels.source,
            code="labels-none",
        )
    if image is not None:
        require_same_grid(image, labels, what="image and labels")
    elif config.modality == "ct" or config.intensity == "image":
        raise ConfigError(
            "modality ct and intensity image need an image",
            received=f"modality {config.modality}, intensity {config.intensity}, labels only",
            remedy="name it with --image, or use modality mr with intensity classes",
            where="synth",
            code="synth-image",
        )
    if image is not None and config.modality == "ct" and image.num_channels != 1:
        raise ConfigError(
            "modality ct needs an image of one channel",
            received=image.num_channels,
            remedy="use modality mr, or an image of one channel",
            where=image.source or "synth",
            code="synth-channels",
        )


def _scaled(array: np.ndarray, config: SynthConfig) -> np.ndarray:
    """Return float32 HU as they are; MR, whose units are arbitrary, with its range stretched to 0 to 1000."""
    if config.modality == "ct":
        return array.astype(np.float32)
    channels = []
    for channel in array:
        low, high = np.quantile(channel, (0.001, 0.999))
        scaled = (channel - low) * (_MR_TOP / (high - low) if high > low else 0.0)
        channels.append(np.clip(scaled, 0, 1.5 * _MR_TOP).astype(np.float32))
    return np.stack(channels)


def _measure(tissues: np.ndarray, count: int, image: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if image is None:
        return np.zeros(count), np.zeros(count)
    flat, values = tissues.ravel(), image[0].ravel().astype(np.float64)
    sizes = np.maximum(np.bincount(flat, minlength=count), 1)
    means = np.bincount(flat, values, count) / sizes
    squares = np.bincount(flat, values**2, count) / sizes
    return means, np.sqrt(np.maximum(squares - means**2, 0))
