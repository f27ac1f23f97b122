"""Makes DICOM series of a patient and a study, and structure sets and segmentations on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from hazards.dicom_faults import AXIAL, make_slices


def make_series(
    *,
    patient: str = "p",
    study: str = "1.9",
    series: str = "1.9.1",
    frame: str = "1.9.7",
    cosines: tuple[float, ...] = AXIAL,
    **changes: Any,
) -> list[Dataset]:
    """Return the slices of `make_slices` as part of a study; `changes` are set on each of them."""
    slices = make_slices(cosines)
    for index, item in enumerate(slices):
        item.PatientID, item.PatientName = patient, "ZZPHI^Name"
        item.PatientBirthDate = item.PatientSex = item.StudyDate = item.StudyTime = ""
        item.AccessionNumber = item.StudyID = item.ReferringPhysicianName = ""
        item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = study, series, frame
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = f"{series}.{index + 1}"
        for name, value in changes.items():
            setattr(item, name, value)
    return slices


def make_rtstruct(
    image: Dataset,
    structures: Mapping[str, Sequence[np.ndarray]],
    *,
    kind: str = "CLOSED_PLANAR",
    uid: str = "1.9.2.1",
) -> Dataset:
    """Return a structure set on the series of `image`: name -> contours `[N, 3]` LPS mm."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    dataset.PatientID, dataset.StudyInstanceUID = image.PatientID, image.StudyInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality = f"{uid}.9", "RTSTRUCT"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = image.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = image.FrameOfReferenceUID, [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    rois, drawn = [], []
    for number, (name, contours) in enumerate(structures.items(), start=5):
        roi, item = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        item.ReferencedROINumber = number
        item.ContourSequence = [_contour(points, kind) for points in contours]
        rois.append(roi)
        drawn.insert(0, item)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = rois, drawn
    return dataset


def _contour(points: np.ndarray, kind: str) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
    contour.ContourData = [f"{value:.6f}" for value in np.asarray(points).ravel()]
    return contour


def make_seg(
    slices: list[Dataset], masks: np.ndarray, names: Sequence[str], *, kind: str = "BINARY", **options: Any
) -> Dataset:
    """Return a segmentation on `slices`: masks `[slices, rows, columns, segments]`."""
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names, start=1)
    ]
    return highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=masks,
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid="1.9.3",
        series_number=3,
        sop_instance_uid="1.9.3.1",
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
        **options,
    )


def save(path: Path, dataset: Dataset) -> Path:
    """Write one file."""
    dataset.save_as(path, enforce_file_format=True)
    return path
