"""One DICOM series from a folder: headers first and all checks, pixels after."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparseg.errors import VolumeError
from sparseg.volumes.dicom_folder import dicom_files
from sparseg.volumes.dicom_header import SliceHeader, read_slice_headers
from sparseg.volumes.dicom_pixels import read_stored_pixels
from sparseg.volumes.dicom_stack import stack_slices
from sparseg.volumes.volume import Volume

_LOG = logging.getLogger("sparseg")


def read_dicom_series(
    folder: Path | str, *, series_uid: str | None = None, max_voxels: int = 2**31
) -> Volume:
    """Read one series of parallel slices, or one enhanced multi-frame file, as rescaled values (HU for CT).

    Args:
        folder: Holds the files; their names do not matter.
        series_uid: SeriesInstanceUID to read where the folder holds several series.
        max_voxels: Refuse larger series before any memory is taken.

    Returns:
        `[1, columns, rows, slices]` float32, its affine to RAS mm; in memory columns run fastest.

    Raises:
        VolumeError: no or several series, a damaged file, pixels that are short or cannot be decoded.
        GeometryError: missing, duplicate, uneven, tilted or mixed slices, or no position.
    """
    folder = Path(folder)
    where = str(folder)
    ordered, affine = series_slices(folder, series_uid=series_uid)
    rows, columns = ordered[0].size
    if rows * columns * len(ordered) > max_voxels:
        raise _refuse(
            f"a series must have at most {max_voxels} voxels",
            f"{columns}x{rows}x{len(ordered)}",
            "raise --max-voxels (argument max_voxels) if it is really that large",
            where,
            "dicom-too-large",
        )
    array = _read_pixels(ordered)
    return Volume(array.transpose(2, 1, 0)[None], affine, source=where)


def series_slices(folder: Path, *, series_uid: str | None = None) -> tuple[list[SliceHeader], np.ndarray]:
    """Find one series by its headers: its slices in the order of the third array axis, and the affine.

    Raises:
        VolumeError: no or several series, or a damaged header.
        GeometryError: missing, duplicate, uneven, tilted or mixed slices, or no position.
    """
    where = str(folder)
    if not folder.is_dir():
        raise _refuse(
            "a DICOM series must be a folder", "no such folder", "check the path", where, "file-missing"
        )
    found = [item for path in dicom_files(folder) for item in read_slice_headers(path)]
    return stack_slices(_choose_series(found, series_uid, where), where=where)


def _choose_series(found: Sequence[SliceHeader], series_uid: str | None, where: str) -> list[SliceHeader]:
    slices = [item for item in found if not item.localizer]
    if len(slices) < len(found):
        _LOG.info("%s: %d localizer images left out", where, len(found) - len(slices))
    if not slices:
        received = "only localizers" if found else "no DICOM image"
        raise _refuse(
            "the folder must hold a DICOM image series",
            received,
            "give the folder of the series itself",
            where,
            "dicom-none",
        )
    uids = sorted({item.series_uid for item in slices})
    if series_uid is not None and series_uid not in uids:
        raise _refuse(
            "the folder must hold the chosen series",
            series_uid,
            _listing(slices),
            where,
            "dicom-no-such-series",
        )
    if series_uid is None and len(uids) > 1:
        remedy = f"choose one with --series-uid (argument series_uid): {_listing(slices)}"
        raise _refuse(
            "the folder must hold one series", f"{len(uids)} series", remedy, where, "dicom-several-series"
        )
    wanted = uids[0] if series_uid is None else series_uid
    return [item for item in slices if item.series_uid == wanted]


def _listing(slices: Sequence[SliceHeader]) -> str:
    lines = []
    for uid in sorted({item.series_uid for item in slices}):
        members = [item for item in slices if item.series_uid == uid]
        lines.append(f"{uid or '(empty)'} ({len(members)} slices)")
    return "found " + ", ".join(lines)


def _read_pixels(ordered: Sequence[SliceHeader]) -> np.ndarray:
    """Return rescaled values `[slices, rows, columns]` float32, each slice by its own slope and intercept."""
    array = np.empty((len(ordered), *ordered[0].size), dtype=np.float32)
    path, stored = None, np.empty(0)
    for index, item in enumerate(ordered):
        if item.path != path:
            path, stored = item.path, read_stored_pixels(item.path)
        array[index] = stored[item.frame].astype(np.float64) * item.slope + item.intercept
    if not np.isfinite(array.sum(dtype=np.float64)):
        raise _refuse(
            "every voxel must be finite in float32",
            "a rescale that exceeds 3.4e38",
            "correct RescaleSlope",
            str(ordered[0].path.parent),
            "dicom-nonfinite",
        )
    return array


def _refuse(rule: str, received: object, remedy: str, where: str, code: str) -> VolumeError:
    return VolumeError(rule, received=received, remedy=remedy, where=where, code=code)
