"""Small volumes for people to look at: image, labels, tokens and confidence, each on a grid of its own.

They are pictures, not results: coarser than the files they stand for, with affines that put them in the
same place of the patient, in millimetres.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseg.volumes.nifti_writer import write_label_map
from sparseg.volumes.volume import Volume
from sparseg.windows.storage import Storage

MAX_EDGE = 192
NAMES = ("image", "labels", "tokens", "confidence")


@dataclass(frozen=True)
class Preview:
    """A small volume.

    Attributes:
        array: uint8 or uint16 `[H, W, D]`.
        affine: 4x4 voxel -> RAS mm.
    """

    array: np.ndarray
    affine: np.ndarray


def strides_of(shape: tuple[int, ...], max_edge: int = MAX_EDGE) -> tuple[int, ...]:
    """Steps along each axis that leave at most `max_edge` voxels."""
    return tuple(max(1, ceil(edge / max_edge)) for edge in shape)


def thin_out(array: np.ndarray, affine: np.ndarray, steps: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Take every n-th voxel of `[H, W, D]` along each axis; the first one stays where it is."""
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3, :3] *= np.asarray(steps)
    a, b, c = steps
    return np.ascontiguousarray(array[::a, ::b, ::c]), scaled


def image_preview(image: Volume, window: tuple[float, float] | None = None) -> Preview:
    """First channel of an image as grey values of 0 to 255.

    Args:
        image: On its own grid.
        window: Values shown as black and white; None takes the 0.5 and 99.5 percentiles.
    """
    array, affine = thin_out(image.array[0], image.affine, strides_of(image.shape))
    values = array.astype(np.float32)
    low, high = window or tuple(float(x) for x in np.percentile(values, (0.5, 99.5)))
    grey = (values - low) * (255 / max(high - low, 1e-6))
    return Preview(np.clip(grey, 0, 255).astype(np.uint8), affine)


def label_preview(labels: np.ndarray, affine: np.ndarray) -> Preview:
    """Ids at the very voxels that `image_preview` shows; no id is invented."""
    return Preview(*thin_out(labels, affine, strides_of(labels.shape)))


def token_preview(depth: np.ndarray, model_affine: np.ndarray, patch: tuple[int, ...]) -> Preview:
    """How far the token of each patch came, one voxel per patch; see `WindowResult.depth`."""
    affine = np.array(model_affine, dtype=np.float64)
    # The first cell's centre lies half a patch less half a voxel behind the first voxel's centre.
    affine[:3, 3] += affine[:3, :3] @ ((np.asarray(patch) - 1) / 2)
    affine[:3, :3] *= np.asarray(patch)
    return Preview(depth, affine)


def confidence_preview(
    logits: Tensor, model_affine: np.ndarray, *, regions: bool, storage: Storage | None = None
) -> Preview:
    """Probability of the decision, 0 to 255: the largest of the softmax, or of the least sure region.

    Plane by plane, since all logits of even a thinned volume would take more memory than the volume itself.
    """
    a, b, c = steps = strides_of(tuple(logits.shape[1:]))
    planes = []
    for i in range(0, logits.shape[1], a):
        if storage is not None:
            storage.touch(logits[:, 0].numel() * logits.element_size())
        some = logits[:, i, ::b, ::c]
        if regions:
            chance = some.sigmoid()
            sure = torch.maximum(chance, 1 - chance).amin(dim=0)
        else:
            sure = some.softmax(dim=0).amax(dim=0)
        planes.append((sure * 255).round().to(torch.uint8))
    affine = np.array(model_affine, dtype=np.float64)
    affine[:3, :3] *= np.asarray(steps)
    return Preview(torch.stack(planes).numpy(), affine)


def write_previews(folder: Path, previews: Mapping[str, Preview]) -> dict[str, str]:
    """Write each as `<name>.nii.gz`, and return name -> file name.

    Raises:
        VolumeError: the folder cannot be written to.
    """
    if not previews:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, preview in previews.items():
        files[name] = f"{name}.nii.gz"
        write_label_map(folder / files[name], preview.array, preview.affine)
    return files
