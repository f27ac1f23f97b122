"""DICOM structure sets (RTSTRUCT): closed planar contours, filled slice by slice on the grid of an image."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from sparseg.errors import GeometryError, VolumeError
from sparseg.volumes.dicom_header import DICOM_FAULTS, unreadable_header
from sparseg.volumes.volume import Volume

_LOG = logging.getLogger("sparseg")
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR"}
_KEYWORDS = ["StructureSetROISequence", "ROIContourSequence"]
# In voxels: how far the points of one contour may leave its plane, contours of one plane may lie apart, and a
# contour may reach beyond the edge of the image.
_MAX_OFF_PLANE, _SAME_PLANE, _MAX_BEYOND = 0.25, 0.05, 1.0
# Contours are written with few digits; without rounding a point on a voxel centre would fall to either side.
_DECIMALS = 4


@dataclass(frozen=True)
class StructureSet:
    """The structures of one file that have an area.

    Attributes:
        path: The file.
        names: ROI names, in file order.
        contours: Closed contours of each, `[N, 3]` LPS mm.
    """

    path: Path
    names: tuple[str, ...]
    contours: tuple[tuple[np.ndarray, ...], ...]

    def mask(self, index: int, image: Volume) -> np.ndarray:
        """Return structure `index` as bool `[H, W, D]`; see `fill_contours` for the rule and the errors."""
        where = f"{self.path} ({self.names[index]})"
        return fill_contours(self.contours[index], image, where=where)


def read_structure_set(path: Path) -> StructureSet:
    """Read a structure set; structures without a closed contour (points, lines, empty ones) are left out.

    Raises:
        VolumeError: damaged, or a contour whose numbers are incomplete.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, specific_tags=_KEYWORDS)
            _require_complete(dataset, path)
            # Keyed by number: the two sequences need not have the same order.
            sequence = dataset.get("ROIContourSequence") or []
            rois = {int(item.ReferencedROINumber): item for item in sequence}
            found = []
            for roi in dataset.get("StructureSetROISequence") or []:
                number = int(roi.ROINumber)
                contours = _closed_contours(rois[number], path) if number in rois else ()
                if contours:
                    found.append((str(roi.get("ROIName") or f"ROI {number}").strip(), contours))
    except DICOM_FAULTS as error:
        raise unreadable_header(path, error) from error
    return StructureSet(path, tuple(name for name, _ in found), tuple(contours for _, contours in found))


def _require_complete(dataset: Dataset, path: Path) -> None:
    """Refuse a sequence that ends early: pydicom takes one cut between two contours for a shorter one."""
    for keyword in _KEYWORDS:
        raw = dataset.get_item(keyword) if keyword in dataset else None
        if (
            isinstance(raw, RawDataElement)
            and raw.value is not None
            and len(raw.value) < raw.length < 2**32 - 1
        ):
            raise VolumeError(
                "the file must hold all the bytes its header declares",
                received=f"{raw.length - len(raw.value)} bytes too few",
                remedy="it is cut short: copy or export it again",
                where=path,
                code="dicom-header",
            )


def _closed_contours(roi: Dataset, path: Path) -> tuple[np.ndarray, ...]:
    kept, skipped = [], Counter[str]()
    for item in roi.get("ContourSequence") or []:
        kind = str(item.get("ContourGeometricType") or "").upper()
        points = _points(item, path)
        if kind in _CLOSED and len(points) >= 3:
            kept.append(points)
        else:
            skipped[kind or "no type"] += 1
    if skipped:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        _LOG.info("%s: contours without an area left out: %s", path, listed)
    return tuple(kept)


def _points(item: Dataset, path: Path) -> np.ndarray:
    """Return the points `[N, 3]` of one contour, LPS mm."""
    raw = item.get_item("ContourData") if "ContourData" in item else None
    if raw is None:
        return np.empty((0, 3))
    # A large set holds millions of numbers; as text they are read ten times faster than by pydicom.
    is_text = isinstance(raw, RawDataElement) and isinstance(raw.value, bytes)
    words = raw.value.rstrip(b" \0").split(b"\\") if is_text else item.ContourData
    values = np.array([float(word) for word in words], dtype=np.float64)
    declared = item.get("NumberOfContourPoints")
    if values.size % 3 or not np.isfinite(values).all() or declared not in (None, values.size // 3):
        raise VolumeError(
            "a contour must hold three finite numbers for each of its points",
            received=f"{values.size} numbers for {declared} points",
            remedy="export the structure set again",
            where=path,
            code="contour-points",
        )
    return values.reshape(-1, 3)


def fill_contours(contours: Sequence[np.ndarray], image: Volume, *, where: str) -> np.ndarray:
    """Fill closed contours on the grid of an image.

    A voxel belongs to the structure if its centre lies inside an odd number of contours of its slice, so that
    an inner contour is a hole. A centre exactly on a contour counts on the side of the lower index and not on
    the other, so that two structures with a common edge neither share voxels nor leave a gap. A contour
    between two slices belongs to the nearer one; of several planes that fall on one slice the nearest counts.

    Args:
        contours: Points `[N, 3]` each, LPS mm; the last is joined to the first.
        image: Gives the grid; contours must lie in planes of one of its axes.
        where: File and structure for messages.

    Returns:
        bool `[H, W, D]`.

    Raises:
        GeometryError: a contour that lies across the slices, or outside the image.
    """
    voxels = [_to_voxels(points, image.affine) for points in contours]
    axis = _slice_axis(voxels, where)
    plane_axes = [other for other in range(3) if other != axis]
    mask = np.zeros(image.shape, dtype=bool)
    slices = np.moveaxis(mask, axis, 0)
    planes = np.array([points[:, axis].mean() for points in voxels])
    for points, plane in zip(voxels, planes, strict=True):
        _require_inside(points[:, plane_axes], plane, axis, image.shape, where)
    for index, members in _members(planes, image.shape[axis], where).items():
        size = (slices.shape[1], slices.shape[2])
        slices[index] = _fill([voxels[member][:, plane_axes] for member in members], size)
    return mask


def _to_voxels(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    ras = points * [-1.0, -1.0, 1.0]
    inverse = np.linalg.inv(affine)
    rounded: np.ndarray = np.round(ras @ inverse[:3, :3].T + inverse[:3, 3], _DECIMALS)
    return rounded


def _slice_axis(voxels: Sequence[np.ndarray], where: str) -> int:
    """The axis along which no contour extends."""
    extents = np.max([np.ptp(points, axis=0) for points in voxels], axis=0)
    axis = int(extents.argmin())
    if extents[axis] > _MAX_OFF_PLANE:
        raise GeometryError(
            "contours must lie in the slices of the image",
            received=f"one that extends over {extents[axis]:.3g} slices",
            remedy="use the image series on which the contours were drawn",
            where=where,
            code="contour-plane",
        )
    return axis


def _require_inside(
    points: np.ndarray, plane: float, axis: int, shape: tuple[int, int, int], where: str
) -> None:
    size = np.delete(shape, axis)
    beyond = max(
        float(np.max([-0.5 - points, points - (size - 0.5)])) - _MAX_BEYOND,
        max(-0.5 - plane, plane - (shape[axis] - 0.5)) - _SAME_PLANE,
    )
    if beyond > 0:
        raise GeometryError(
            "contours must lie inside the image",
            received=f"one at slice {plane:.4g} of {shape[axis]}, from voxel {points.min(axis=0).tolist()} "
            f"to {points.max(axis=0).tolist()} of {size.tolist()}",
            remedy="use the series on which they were drawn, or declare labels without this structure",
            where=where,
            code="contour-outside",
        )


def _members(planes: np.ndarray, num_slices: int, where: str) -> dict[int, list[int]]:
    """Slice -> contours that are filled there."""
    nearest = np.clip(np.floor(planes + 0.5), 0, num_slices - 1).astype(int)
    members = {}
    for index in np.unique(nearest).tolist():
        candidates = np.flatnonzero(nearest == index)
        closest = planes[candidates[np.abs(planes[candidates] - index).argmin()]]
        # Contours of another plane would cancel these by the even-odd rule.
        members[index] = [int(c) for c in candidates if abs(planes[c] - closest) <= _SAME_PLANE]
    left_out = len(planes) - sum(len(chosen) for chosen in members.values())
    if left_out:
        _LOG.warning("%s: %d contours between the slices left out, nearer ones exist", where, left_out)
    missing = max(members) - min(members) + 1 - len(members)
    if missing:
        _LOG.warning("%s: %d slices between the first and the last have no contour", where, missing)
    return members


def _fill(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Fill polygons `[N, 2]` in voxels (first axis, second axis) by the even-odd rule: bool `size`.

    For every line of voxels along the first axis, the crossings with all edges are marked at the first voxel
    at or after them; their running parity along the line is 1 inside.
    """
    # Only the part of the slice that the polygons reach.
    points = np.concatenate(polygons)
    box = np.clip([np.floor(points.min(axis=0)), np.ceil(points.max(axis=0)) + 1], 0, size).astype(int)
    offset, (width, height) = box[0], box[1] - box[0]
    polygons = [polygon - offset for polygon in polygons]
    start = np.concatenate(polygons)
    end = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low), 0, height).astype(int)
    count = np.clip(np.ceil(high), 0, height).astype(int) - first
    edge = np.repeat(np.arange(len(start)), count)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - first, count)
    share = (line - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
    voxel = np.clip(np.ceil(np.round(crossing, _DECIMALS)), 0, width).astype(int)
    marks = np.zeros((width + 1, height), dtype=np.uint8)
    np.bitwise_xor.at(marks, (voxel, line), 1)
    inside = np.zeros(size, dtype=bool)
    inside[box[0, 0] : box[1, 0], box[0, 1] : box[1, 1]] = np.bitwise_xor.accumulate(marks[:-1], axis=0)
    return inside
