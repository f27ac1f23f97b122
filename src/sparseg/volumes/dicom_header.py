"""What one DICOM image says about itself, one record per slice (a multi-frame file gives one per frame)."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from sparseg.errors import GeometryError, VolumeError

_LOG = logging.getLogger("sparseg")

# What damaged data elements make pydicom raise, at reading or when a value is first looked at.
DICOM_FAULTS = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
)
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_NO_IMAGE = {"SR", "PR", "KO", "REG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "PLAN", "DOC", "FID", "SEG"}
_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True)
class SliceHeader:
    """One slice.

    Attributes:
        path: Its file.
        frame: Index within a multi-frame file, 0 otherwise.
        num_frames: Frames in the file.
        series_uid: SeriesInstanceUID, may be empty in anonymised data.
        localizer: Whether it is a planning image.
        frame_of_reference: UID of the coordinate system, may be empty.
        size: (rows, columns).
        position: Centre of the first voxel, LPS mm, `[3]`.
        cosines: Directions of growing column and of growing row index, `[2, 3]`, unit length, LPS.
        spacing: Distance in mm between rows and between columns.
        thickness: Slice spacing of a single slice, None if not stated.
        slope: Rescale slope.
        intercept: Rescale intercept.
    """

    path: Path
    frame: int
    num_frames: int
    series_uid: str
    localizer: bool
    frame_of_reference: str
    size: tuple[int, int]
    position: np.ndarray
    cosines: np.ndarray
    spacing: tuple[float, float]
    thickness: float | None
    slope: float
    intercept: float


def read_slice_headers(path: Path) -> list[SliceHeader]:
    """Return the slices of one file; none if it holds no image (a structure set, a report, a directory).

    Raises:
        VolumeError: damaged, colour, or a multi-frame file without a position per frame.
        GeometryError: no or an impossible position, orientation or spacing.
    """
    try:
        # Damaged values make pydicom warn first; whatever matters here is checked and refused below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_KEYWORDS)
            if not _is_image(dataset, path):
                return []
            _check_pixels(dataset, path)
            return [header for header, _ in plane_headers(dataset, path)]
    except DICOM_FAULTS as error:
        raise unreadable_header(path, error) from error


def unreadable_header(path: Path, error: Exception) -> VolumeError:
    """The error for a DICOM file whose header pydicom cannot read."""
    return VolumeError(
        "the DICOM header must be readable",
        received=f"{type(error).__name__} while reading it",
        remedy="copy or export the file again",
        where=path,
        code="dicom-header",
    )


def _is_image(dataset: Dataset, path: Path) -> bool:
    media_class = dataset.file_meta.get("MediaStorageSOPClassUID", "")
    if media_class == DIRECTORY_CLASS or dataset.get("Modality") in _NO_IMAGE:
        _LOG.info("%s: not an image, left out", path)
        return False
    return True


def plane_headers(dataset: Dataset, path: Path) -> Iterator[tuple[SliceHeader, list[Dataset]]]:
    """Yield each frame of an image, whatever its pixels hold, with the places that may describe it.

    The places come with the most specific first: macros of the frame, macros shared by all, the file.

    Raises:
        VolumeError: a multi-frame file without a description per frame.
        GeometryError: no or an impossible position, orientation or spacing.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if groups is None:
        if frames > 1:
            raise VolumeError(
                "a multi-frame file must state the position of every frame",
                received=f"{frames} frames without functional groups",
                remedy="convert it to NIfTI with a tool that knows the scanner",
                where=path,
                code="dicom-multiframe",
            )
        yield _slice(dataset, [dataset], path, 0, 1), [dataset]
        return
    if len(groups) != frames:
        raise VolumeError(
            "a multi-frame file must describe each of its frames",
            received=f"{len(groups)} descriptions for {frames} frames",
            remedy="export the series again",
            where=path,
            code="dicom-multiframe",
        )
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    for index, group in enumerate(groups):
        places = [*_macros(group), *(m for item in shared for m in _macros(item)), dataset]
        yield _slice(dataset, places, path, index, frames), places


def _macros(group: Dataset) -> Iterator[Dataset]:
    """Yield the first item of every macro (plane position, pixel measures, ...) of a functional group."""
    for element in group:
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _slice(dataset: Dataset, places: list[Dataset], path: Path, frame: int, num_frames: int) -> SliceHeader:
    image_type = [str(value).upper() for value in (dataset.get("ImageType") or [])]
    localizer = "LOCALIZER" in image_type
    rescale = find_value(places, "RescaleSlope"), find_value(places, "RescaleIntercept")
    if rescale == (None, None) and (dataset.get("Modality") != "CT" or localizer):
        rescale = (1.0, 0.0)
    slope, intercept = _numbers(rescale, 2, "RescaleSlope and RescaleIntercept", path, "rescale", VolumeError)
    if slope == 0:
        raise _refuse(VolumeError, "RescaleSlope must not be 0", 0, path, "rescale")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows < 1 or columns < 1:
        raise _refuse(VolumeError, "Rows and Columns must be positive", f"{rows} and {columns}", path, "size")
    position = _numbers(
        find_value(places, "ImagePositionPatient"), 3, "ImagePositionPatient", path, "no-position"
    )
    spacing = _numbers(find_value(places, "PixelSpacing"), 2, "PixelSpacing", path, "no-spacing")
    if spacing.min() <= 0:
        raise _refuse(GeometryError, "PixelSpacing must be positive", spacing.tolist(), path, "no-spacing")
    thickness = find_value(places, "SpacingBetweenSlices") or find_value(places, "SliceThickness")
    return SliceHeader(
        path=path,
        frame=frame,
        num_frames=num_frames,
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        localizer=localizer,
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        size=(rows, columns),
        position=position,
        cosines=_cosines(find_value(places, "ImageOrientationPatient"), path),
        spacing=(float(spacing[0]), float(spacing[1])),
        thickness=None if thickness is None else abs(float(thickness)),
        slope=float(slope),
        intercept=float(intercept),
    )


def _check_pixels(dataset: Dataset, path: Path) -> None:
    samples, kind = dataset.get("SamplesPerPixel"), dataset.get("PhotometricInterpretation")
    if samples != 1 or kind != "MONOCHROME2":
        raise _refuse(
            VolumeError,
            "pixels must be MONOCHROME2 with one sample",
            f"{kind}, {samples} samples",
            path,
            "pixels",
        )
    if dataset.get("BitsAllocated") not in (8, 16, 32) or dataset.get("PixelRepresentation") not in (0, 1):
        received = f"{dataset.get('BitsAllocated')} bits, representation {dataset.get('PixelRepresentation')}"
        raise _refuse(VolumeError, "pixels must be integers of 8, 16 or 32 bits", received, path, "pixels")
    stored, high = dataset.get("BitsStored"), dataset.get("HighBit")
    if None not in (stored, high) and high != stored - 1:
        # Decoders take the lowest bits, so that such values would come out multiplied.
        received = f"HighBit {high}, BitsStored {stored}"
        raise _refuse(
            VolumeError,
            "pixels must fill the lowest bits (HighBit = BitsStored - 1)",
            received,
            path,
            "pixels",
        )
    if dataset.get("ModalityLUTSequence"):
        raise _refuse(
            VolumeError, "pixel values must be rescaled linearly", "a modality lookup table", path, "rescale"
        )


def _cosines(value: Any, path: Path) -> np.ndarray:
    pair = _numbers(value, 6, "ImageOrientationPatient", path, "no-orientation").reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(pair[0] @ pair[1]) > 1e-3:
        raise _refuse(
            GeometryError,
            "ImageOrientationPatient must hold two unit vectors at right angles",
            pair.tolist(),
            path,
            "bad-orientation",
        )
    unit: np.ndarray = pair / lengths[:, None]
    # Cosines are stored as text with few digits; the row direction is kept, the column one made exact.
    unit[1] -= (unit[0] @ unit[1]) * unit[0]
    unit[1] /= np.linalg.norm(unit[1])
    return unit


def find_value(places: Iterable[Dataset], keyword: str) -> Any:
    """The first value of a keyword that is not empty, None if there is none."""
    for place in places:
        value = place.get(keyword)
        if value is not None and value != "":
            return value
    return None


def _numbers(
    value: Any,
    count: int,
    name: str,
    path: Path,
    code: str,
    kind: type[GeometryError] | type[VolumeError] = GeometryError,
) -> np.ndarray:
    values = [] if value is None else [float("nan") if v is None else float(v) for v in value]
    if len(values) != count or not np.isfinite(values).all():
        raise _refuse(kind, f"{name} must be {count} finite numbers", values or "nothing", path, code)
    return np.array(values, dtype=np.float64)


def _refuse(
    kind: type[GeometryError] | type[VolumeError], rule: str, received: object, path: Path, code: str
) -> GeometryError | VolumeError:
    remedy = "export the series again, or convert it with a tool that knows the scanner"
    return kind(rule, received=received, remedy=remedy, where=path, code=f"dicom-{code}")
