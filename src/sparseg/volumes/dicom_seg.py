"""DICOM segmentations (SEG): frames placed by their own position on the grid of an image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom.seg import Segmentation, segread

from sparseg.errors import GeometryError, VolumeError
from sparseg.volumes.dicom_header import (
    DICOM_FAULTS,
    SliceHeader,
    find_value,
    plane_headers,
    unreadable_header,
)
from sparseg.volumes.volume import Volume

# In voxels, at the corners of a frame: slices of an image may be unevenly spaced by 2 % of their distance.
_MAX_OFF_GRID = 0.05
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class SegmentationFile:
    """The segments of one file.

    Attributes:
        path: The file.
        names: Segment labels, in file order; the background of a label map is not among them.
        numbers: Segment number of each.
        frames: Place of each frame.
        frame_numbers: Segment number of each frame; 0 where its pixels are segment numbers themselves.
        pixels: `[frames, rows, columns]` uint8 or uint16: 0 and 1, or segment numbers.
    """

    path: Path
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    frames: tuple[SliceHeader, ...]
    frame_numbers: tuple[int, ...]
    pixels: np.ndarray

    def mask(self, index: int, image: Volume) -> np.ndarray:
        """Return segment `index` as bool `[H, W, D]`; slices without a frame are empty.

        Raises:
            GeometryError: pixels that do not coincide with voxels of the image.
        """
        mask = np.zeros(image.shape, dtype=bool)
        for frame, number, pixels in zip(self.frames, self.frame_numbers, self.pixels, strict=True):
            if number in (0, self.numbers[index]):
                inside = pixels == self.numbers[index] if number == 0 else pixels != 0
                if inside.any():
                    _place(inside, frame, image, mask, self.path)
        return mask


def read_segmentation(path: Path) -> SegmentationFile:
    """Read a binary, fractional or label map segmentation; fractions count from half of their maximum.

    Raises:
        VolumeError: damaged, short, or frames that name no segment.
        GeometryError: a frame without position, orientation or spacing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = segread(path)
            planes = list(plane_headers(dataset, path))
            pixels = np.asarray(dataset.get_stored_frames())
            segments = [item for item in dataset.SegmentSequence if int(item.SegmentNumber) > 0]
            numbers = tuple(int(item.SegmentNumber) for item in segments)
            names = tuple(str(item.get("SegmentLabel") or "").strip() for item in segments)
            pixels = _whole(pixels, dataset)
            labelmap = dataset.SegmentationType == "LABELMAP"
            found = [0 if labelmap else find_value(places, "ReferencedSegmentNumber") for _, places in planes]
    except DICOM_FAULTS as error:
        raise unreadable_header(path, error) from error
    frames = tuple(header for header, _ in planes)
    if pixels.shape != (len(frames), *frames[0].size) or None in found or not set(found) <= {0, *numbers}:
        raise VolumeError(
            "every frame must have all its pixels and name a described segment",
            received=f"{pixels.shape} pixels, {len(frames)} frames, segments {sorted(set(map(str, found)))}",
            remedy="export the segmentation again",
            where=path,
            code="dicom-seg",
        )
    return SegmentationFile(path, names, numbers, frames, tuple(int(number) for number in found), pixels)


def _whole(pixels: np.ndarray, dataset: Segmentation) -> np.ndarray:
    if dataset.SegmentationType != "FRACTIONAL":
        return pixels
    return (pixels >= 0.5 * int(dataset.MaximumFractionalValue)).astype(np.uint8)


def _place(inside: np.ndarray, frame: SliceHeader, image: Volume, mask: np.ndarray, path: Path) -> None:
    """Set the voxels of `mask` `[H, W, D]` that coincide with set pixels `[rows, columns]` of a frame."""
    inverse = np.linalg.inv(image.affine)
    steps = frame.cosines * [[frame.spacing[1]], [frame.spacing[0]]]
    # Voxel index of pixel (column, row): corner + column * along[0] + row * along[1].
    along = (steps * _LPS_TO_RAS) @ inverse[:3, :3].T
    corner = (frame.position * _LPS_TO_RAS) @ inverse[:3, :3].T + inverse[:3, 3]
    whole = np.rint(along).astype(int)
    _require_on_grid(corner, along, whole, frame, path)
    rows, columns = np.nonzero(inside)
    indices = np.rint(corner).astype(int) + columns[:, None] * whole[0] + rows[:, None] * whole[1]
    if indices.min() < 0 or (indices >= image.shape).any():
        raise _off_grid(
            "segmentation must lie inside the image",
            f"voxels from {indices.min(axis=0).tolist()} to {indices.max(axis=0).tolist()} of {image.shape}",
            path,
            "grid-shape",
        )
    mask[tuple(indices.T)] = True


def _require_on_grid(
    corner: np.ndarray, along: np.ndarray, whole: np.ndarray, frame: SliceHeader, path: Path
) -> None:
    lengths = np.linalg.norm(along, axis=1)
    reach = np.array([frame.size[1], frame.size[0]])
    if (np.abs(whole).sum(axis=1) != 1).any() or (whole[0] * whole[1]).any():
        rule = "segmentation and image must have the same spacing, and axes that agree up to order and flips"
        raise _off_grid(rule, f"steps of {_text(along)} voxels", path, "grid-orientation")
    if (np.abs(along - whole).max(axis=1) * reach > _MAX_OFF_GRID).any():
        rule = "segmentation and image must have the same spacing and directions"
        received = f"steps of {_text(along)} voxels, {_text(lengths)} long"
        raise _off_grid(rule, received, path, "grid-spacing")
    if np.abs(corner - np.rint(corner)).max() > _MAX_OFF_GRID:
        rule = "the pixels of a segmentation must lie on the voxels of the image"
        raise _off_grid(rule, f"a frame that starts at voxel {_text(corner)}", path, "grid-position")


def _text(values: np.ndarray | Sequence[float]) -> str:
    return str(np.round(values, 4).tolist())


def _off_grid(rule: str, received: str, path: Path, code: str) -> GeometryError:
    remedy = "use the series that was segmented, or resample the segmentation to the image"
    return GeometryError(rule, received=received, remedy=remedy, where=path, code=code)
