"""What one DICOM file is and belongs to, for sorting a folder into patients, studies and series."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from sparseg.errors import VolumeError
from sparseg.volumes.dicom_header import DICOM_FAULTS, DIRECTORY_CLASS, unreadable_header

_KEYWORDS = [
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ImageType",
    "NumberOfFrames",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
]


@dataclass(frozen=True)
class DicomContents:
    """One file; UIDs may be empty in anonymised data.

    Attributes:
        path: The file.
        patient: Short hash of PatientID, which is itself kept nowhere; empty without one.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        frames_of_reference: UIDs of the coordinate systems it uses.
        modality: Such as "CT", "RTSTRUCT", "SEG".
        localizer: Whether it is a planning image.
        num_slices: Frames of a multi-frame file, otherwise 1.
        referenced: SeriesInstanceUIDs of the images that a structure set or segmentation belongs to.
    """

    path: Path
    patient: str
    study: str
    series: str
    frames_of_reference: frozenset[str]
    modality: str
    localizer: bool
    num_slices: int
    referenced: frozenset[str]


def read_contents(path: Path) -> DicomContents:
    """Read what a file says about its place among others.

    Raises:
        VolumeError: not readable as DICOM, or without a modality.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_KEYWORDS)
            return _contents(dataset, path)
    except DICOM_FAULTS as error:
        raise unreadable_header(path, error) from error


def _contents(dataset: Dataset, path: Path) -> DicomContents:
    modality = _text(dataset, "Modality").upper()
    if not modality and dataset.file_meta.get("MediaStorageSOPClassUID") != DIRECTORY_CLASS:
        # pydicom takes a file that is cut within its header for one with fewer elements.
        raise VolumeError(
            "a DICOM file must state its modality",
            received="none",
            remedy="copy or export the file again",
            where=path,
            code="dicom-header",
        )
    patient = str(dataset.get("PatientID") or "").strip()
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or []
    places = [dataset, *frames]
    image_type = [str(value).upper() for value in (dataset.get("ImageType") or [])]
    return DicomContents(
        path=path,
        patient=hashlib.sha256(patient.encode()).hexdigest()[:12] if patient else "",
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        frames_of_reference=frozenset(_text(place, "FrameOfReferenceUID") for place in places) - {""},
        modality=modality,
        localizer="LOCALIZER" in image_type,
        num_slices=int(dataset.get("NumberOfFrames") or 1),
        referenced=frozenset(_referenced(dataset)) - {""},
    )


def _referenced(dataset: Dataset) -> Iterator[str]:
    for series in dataset.get("ReferencedSeriesSequence") or []:
        yield _text(series, "SeriesInstanceUID")
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield _text(series, "SeriesInstanceUID")


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
