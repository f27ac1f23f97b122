"""Label maps as DICOM SEG objects on the grid of their series, made by highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import highdicom as hd
import numpy as np
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset

from sparseg.errors import GeometryError, LabelError, VolumeError
from sparseg.volumes.coded_terms import Code, CodedName, code_name
from sparseg.volumes.dicom_object import MAX_TEXT, refusing_faults, structure_names, write_object

# DICOM context group 7162.
ALGORITHM_FAMILIES = {
    "network": Code("123110", "DCM", "Artificial Intelligence"),
    "by hand": Code("123109", "DCM", "Manual Processing"),
    "synthesis": Code("123111", "DCM", "Deformable Models"),
}


@dataclass(frozen=True)
class SegmentationHeader:
    """What the object says about itself; nothing here may identify a patient.

    Attributes:
        algorithm: Name of what made the labels.
        family: A key of `ALGORITHM_FAMILIES`.
        version: Version of the algorithm.
        software: Versions of the software, e.g. ("sparseg 0.3",).
        description: What the labels are, at most 64 characters are kept.
        series_description: How viewers list the series.
        series_number: Number of the new series.
        series_uid: UID of the new series; a new one by default.
        instance_uid: UID of the object; a new one by default.
        automatic: Whether nobody took part; otherwise half-automatic.
        tracking: Label id -> tracking id and UID, if the labels have such.
        colours: Label id -> red, green, blue, 0 to 255, for viewers.
    """

    algorithm: str
    family: str
    version: str
    software: tuple[str, ...]
    description: str
    series_description: str
    series_number: int
    series_uid: str = field(default_factory=hd.UID)
    instance_uid: str = field(default_factory=hd.UID)
    automatic: bool = True
    tracking: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)


def make_segmentation(
    series: Sequence[Dataset],
    labels: np.ndarray,
    names: Mapping[int, str],
    header: SegmentationHeader,
    *,
    kind: Literal["BINARY", "LABELMAP"] = "BINARY",
) -> hd.seg.Segmentation:
    """Return the SEG object of a labelled series.

    Segments are the declared labels without the background, in the order of their ids, numbered from 1;
    structures that the case does not have are declared all the same. DICOM demands that the object belongs to
    the patient and study of its series: highdicom copies the Patient and Study modules and the scanner, as
    far as `series` holds them.

    Args:
        series: Headers of the slices in the order of the third array axis, with one and the same
            ImageOrientationPatient; or one multi-frame image whose frames have that order.
        labels: Ids `[columns, rows, slices]` on the grid of the series.
        names: Id -> name.
        header: What the object says about itself.
        kind: One bit mask per segment and slice, which all readers know; or one number per voxel.

    Raises:
        LabelError: an id without a name, two with the same, or no structure besides the background.
        GeometryError: labels of another size than the series.
        VolumeError: the series lacks what a SEG object must say.
    """
    ids = [label_id for label_id in sorted(names) if label_id]
    frames = _segment_numbers(labels, ids)
    _require_size(series, labels.shape)
    stored = structure_names(names, ids)
    descriptions = [
        _describe(number, label_id, stored[label_id], code_name(names[label_id]), header)
        for number, label_id in enumerate(ids, start=1)
    ]
    with refusing_faults(series[0], _refuse_source):
        return _assemble(series, frames, descriptions, header, kind)


def write_segmentation(path: Path, segmentation: Dataset) -> None:
    """Write a SEG object in one step, read back and compared.

    Raises:
        VolumeError: a copied header that DICOM cannot hold, no such folder, or the disk refuses.
    """
    write_object(path, segmentation, _refuse_source)


def _assemble(
    series: Sequence[Dataset],
    frames: np.ndarray,
    descriptions: Sequence[hd.seg.SegmentDescription],
    header: SegmentationHeader,
    kind: str,
) -> hd.seg.Segmentation:
    return hd.seg.Segmentation(
        source_images=series,
        pixel_array=frames,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=header.series_uid,
        series_number=header.series_number,
        sop_instance_uid=header.instance_uid,
        instance_number=1,
        # A SEG object needs at least one frame.
        omit_empty_frames=bool(frames.any()),
        manufacturer="sparseg",
        manufacturer_model_name="sparseg",
        software_versions=list(header.software),  # pydicom takes no tuple
        device_serial_number="0",
        content_label="LABELS",
        content_description=header.description[:MAX_TEXT],
        series_description=header.series_description[:MAX_TEXT],
    )


def _refuse_source(error: Exception, source: Dataset) -> VolumeError:
    """The error for headers that a SEG object cannot be built on; its message must not quote them."""
    missing = getattr(error, "name", None)
    return VolumeError(
        "the series must have the headers that a DICOM SEG object refers to",
        received=f"{type(error).__name__} at {missing}" if missing else type(error).__name__,
        remedy="export the series again with complete and valid headers, or write another format",
        where=f"series {source.get('SeriesInstanceUID', '')}",
        code="dicom-seg-source",
    )


def _segment_numbers(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Return `[slices, rows, columns]` numbers from 1 in the order of the ids, 0 for the background."""
    if not ids:
        raise LabelError(
            "a segmentation must have a structure besides the background",
            received="only the background",
            remedy="declare the labels",
            code="dicom-seg-empty",
        )
    numbers = np.zeros(ids[-1] + 1, np.uint8 if len(ids) < 256 else np.uint16)
    numbers[list(ids)] = np.arange(1, len(ids) + 1)
    known = np.zeros(len(numbers), bool)
    known[[0, *ids]] = True
    if labels.min() < 0 or labels.max() >= len(numbers) or not known[labels].all():
        raise LabelError(
            "every id of the label map must have a name",
            received=f"ids {np.unique(labels).tolist()[:20]}",
            remedy=f"name them, or keep to 0 and {list(ids)[:20]}",
            code="label-id",
        )
    frames: np.ndarray = np.ascontiguousarray(numbers[labels].transpose(2, 1, 0))
    return frames


def _require_size(series: Sequence[Dataset], shape: tuple[int, ...]) -> None:
    num_slices = int(series[0].get("NumberOfFrames") or 1) if len(series) == 1 else len(series)
    size = (int(series[0].Columns), int(series[0].Rows), num_slices)
    if tuple(shape) != size:
        raise GeometryError(
            "labels must have the size of their series",
            received=f"{tuple(shape)} for {size} (columns, rows, slices)",
            remedy="resample the labels to the series",
            code="grid-shape",
        )


def _describe(
    number: int, label_id: int, name: str, coded: CodedName, header: SegmentationHeader
) -> hd.seg.SegmentDescription:
    kinds = hd.seg.SegmentAlgorithmTypeValues
    colour = header.colours.get(label_id)
    tracking_id, tracking_uid = header.tracking.get(label_id, (None, None))
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=_concept(coded.category),
        segmented_property_type=_concept(coded.kind),
        algorithm_type=kinds.AUTOMATIC if header.automatic else kinds.SEMIAUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=header.algorithm,
            family=_concept(ALGORITHM_FAMILIES[header.family]),
            version=header.version,
        ),
        tracking_id=tracking_id,
        tracking_uid=tracking_uid,
        anatomic_regions=[_concept(coded.region)] if coded.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*colour) if colour else None,
    )
    if coded.side:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(coded.side)]
    return description


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)
