"""Label maps as DICOM structure sets (RTSTRUCT) on the slices of their series. Experimental."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from sparseg.errors import GeometryError, LabelError, VolumeError
from sparseg.volumes.contours import trace_mask
from sparseg.volumes.dicom_object import (
    MAX_TEXT,
    PATIENT_AND_STUDY,
    PATIENT_WHERE_KNOWN,
    refusing_faults,
    structure_names,
    write_object,
)
from sparseg.volumes.geometry import voxel_to_world

_DEMANDED = (*PATIENT_AND_STUDY, "StudyInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator")
# Each takes some 3 kB while the object is put together, and no program would open so many.
MAX_CONTOURS = 250_000
# A tenth of a micrometre; a number may have 16 characters.
_DECIMALS = 4
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, and still what this field is filled with


@dataclass(frozen=True)
class StructureSetHeader:
    """What the object says about itself; nothing here may identify a patient.

    Attributes:
        software: Versions of the software, e.g. ("sparseg 0.3",).
        description: What the structures are and how far to trust them.
        series_description: How viewers list the series, at most 64 characters are kept.
        series_number: Number of the new series.
        label: Short name of the set, at most 16 characters.
        colours: Label id -> red, green, blue, 0 to 255.
        series_uid: UID of the new series; a new one by default.
        instance_uid: UID of the object; a new one by default.
    """

    software: tuple[str, ...]
    description: str
    series_description: str
    series_number: int
    label: str = "SPARSEG"
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    series_uid: str = field(default_factory=lambda: generate_uid(prefix=None))
    instance_uid: str = field(default_factory=lambda: generate_uid(prefix=None))


@dataclass(frozen=True)
class SliceReference:
    """The image that a slice is: its class and UID, and its number in a multi-frame file, from 1."""

    sop_class: str
    instance: str
    frame: int | None = None


def make_structure_set(
    source: Dataset,
    slices: Sequence[SliceReference],
    labels: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    header: StructureSetHeader,
) -> Dataset:
    """Return the structure set of a labelled series.

    Structures are the declared labels without the background in the order of their ids, numbered from 1, with
    contours or without. Contours are those of `trace_mask`, of type CLOSED_PLANAR, in the planes of the
    slices; holes are joined to their outline by a channel without width, as the standard has it.

    Args:
        source: Header of an image of the series: size, patient, study and frame of reference are its.
        slices: The images in the order of the third array axis.
        labels: Ids `[columns, rows, slices]` on the grid of the series.
        affine: 4x4 of this grid, voxel -> RAS mm.
        names: Id -> name.
        header: What the object says about itself.

    Raises:
        LabelError: an id without a name, two with the same, no structure besides the background, or more
            than `MAX_CONTOURS` outlines.
        GeometryError: labels of another size than the series.
        VolumeError: the series lacks what the object must say.
    """
    ids = [label_id for label_id in sorted(names) if label_id]
    _require_fitting(labels, ids, (int(source.Columns), int(source.Rows), len(slices)))
    stored = structure_names(names, ids)
    contours = _contours(labels, affine, slices)
    with refusing_faults(source, _refuse_source):
        dataset = _head(source, header)
        dataset.ReferencedFrameOfReferenceSequence = [_referenced_frame(source, slices)]
        numbered = list(enumerate(ids, start=1))
        dataset.StructureSetROISequence = [
            _structure(number, stored[label_id], source) for number, label_id in numbered
        ]
        dataset.ROIContourSequence = [
            _drawn(number, contours.get(label_id, []), header.colours.get(label_id))
            for number, label_id in numbered
        ]
        dataset.RTROIObservationsSequence = [_observation(number) for number, _ in numbered]
        return dataset


def write_structure_set(path: Path, dataset: Dataset) -> None:
    """Write a structure set in one step, read back and compared.

    Raises:
        VolumeError: a copied header that DICOM cannot hold, no such folder, or the disk refuses.
    """
    write_object(path, dataset, _refuse_source)


def _require_fitting(labels: np.ndarray, ids: Sequence[int], size: tuple[int, int, int]) -> None:
    if not ids:
        raise LabelError(
            "a structure set must have a structure besides the background",
            received="only the background",
            remedy="declare the labels",
            code="rtstruct-empty",
        )
    if labels.shape != size:
        raise GeometryError(
            "labels must have the size of their series",
            received=f"{labels.shape} for {size} (columns, rows, slices)",
            remedy="resample the labels to the series",
            code="grid-shape",
        )
    unknown = set(np.unique(labels).tolist()) - {0, *ids}
    if unknown:
        raise LabelError(
            "every id of the label map must have a name",
            received=f"ids {sorted(unknown)[:20]}",
            remedy=f"name them, or keep to 0 and {list(ids)[:20]}",
            code="label-id",
        )


def _contours(
    labels: np.ndarray, affine: np.ndarray, slices: Sequence[SliceReference]
) -> dict[int, list[Dataset]]:
    """Contours by id, from the first slice to the last."""
    found: dict[int, list[Dataset]] = {}
    count = 0
    for index, reference in enumerate(slices):
        plane = np.ascontiguousarray(labels[..., index])
        for label_id in np.flatnonzero(np.bincount(plane.reshape(-1))[1:]) + 1:
            items = [_contour(points, reference) for points in _outlines(plane == label_id, index, affine)]
            found.setdefault(int(label_id), []).extend(items)
            count += len(items)
            if count > MAX_CONTOURS:
                raise LabelError(
                    f"a structure set must have at most {MAX_CONTOURS} contours",
                    received=f"more in the first {index + 1} of {len(slices)} slices: labels in tiny pieces",
                    remedy="remove fragments (--min-ml, --largest-component), or write another --format",
                    code="rtstruct-size",
                )
    return found


def _outlines(mask: np.ndarray, index: int, affine: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the outlines of a mask in one slice, `[N, 3]` LPS mm."""
    for polygon in trace_mask(mask):
        voxels = np.column_stack([polygon, np.full(len(polygon), index)])
        yield voxel_to_world(affine, voxels) * [-1.0, -1.0, 1.0]


def _contour(points: np.ndarray, reference: SliceReference) -> Dataset:
    item, image = Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = reference.sop_class, reference.instance
    if reference.frame is not None:
        image.ReferencedFrameNumber = reference.frame
    item.ContourImageSequence = [image]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    # Adding 0 turns -0.0, which some programs stumble over, into 0.0.
    rounded = np.round(points.ravel(), _DECIMALS) + 0.0
    text = "\\".join([f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".") for value in rounded.tolist()])
    # As one text: pydicom would make an object of 300 bytes of each number.
    item.add(DataElement("ContourData", "DS", text, already_converted=True))
    return item


def _head(source: Dataset, header: StructureSetHeader) -> Dataset:
    """Everything but the structures."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    # With explicit types a contour could have no more than 65,534 characters, some 3,000 points.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = header.instance_uid
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _DEMANDED:
        setattr(dataset, keyword, source.get(keyword, ""))
    for keyword in PATIENT_WHERE_KNOWN:
        if source.get(keyword):
            setattr(dataset, keyword, source.get(keyword))
    dataset.Modality, dataset.OperatorsName = "RTSTRUCT", ""
    dataset.SeriesInstanceUID, dataset.SeriesNumber = header.series_uid, header.series_number
    dataset.SeriesDescription, dataset.InstanceNumber = header.series_description[:MAX_TEXT], 1
    dataset.Manufacturer = dataset.ManufacturerModelName = "sparseg"
    dataset.SoftwareVersions = list(header.software)
    now = datetime.now()
    dataset.StructureSetLabel, dataset.StructureSetDescription = header.label, header.description
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _referenced_frame(source: Dataset, slices: Sequence[SliceReference]) -> Dataset:
    """The frame of reference with the study, the series and its images."""
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ContourImageSequence = []
    # A multi-frame file is one image, however many slices it holds.
    for instance, sop_class in {item.instance: item.sop_class for item in slices}.items():
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class, instance
        series.ContourImageSequence.append(image)
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, source.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = source.FrameOfReferenceUID, [study]
    return frame


def _structure(number: int, name: str, source: Dataset) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName = number, name
    item.ReferencedFrameOfReferenceUID = source.FrameOfReferenceUID
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    return item


def _drawn(number: int, contours: list[Dataset], colour: tuple[int, int, int] | None) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = number
    if colour is not None:
        item.ROIDisplayColor = list(colour)
    if contours:  # a sequence that is there may not be empty
        item.ContourSequence = contours
    return item


def _observation(number: int) -> Dataset:
    """What kind of structure it is: a network cannot know whether it is a target or an organ at risk."""
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType = item.ROIInterpreter = ""
    return item


def _refuse_source(error: Exception, source: Dataset) -> VolumeError:
    """The error for headers that a structure set cannot be built on; its message must not quote them."""
    return VolumeError(
        "the series must have the headers that a structure set refers to",
        received=type(error).__name__,
        remedy="export the series again with complete and valid headers, or write another format",
        where=f"series {source.get('SeriesInstanceUID', '')}",
        code="rtstruct-source",
    )
