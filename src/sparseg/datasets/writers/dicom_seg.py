"""Labels of a written series as a DICOM SEG object: one binary segment per structure, made by highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydicom.dataset import Dataset

from sparseg.datasets.writers.dicom_series import Identity, stamp
from sparseg.volumes.volume import Volume

# DICOM context group 7162.
_DEFORMABLE = ("123111", "DCM", "Deformable Models")
_BY_HAND = ("123109", "DCM", "Manual Processing")


def make_segmentation(
    series: Sequence[Dataset], labels: Volume, names: Mapping[int, str], identity: Identity
) -> Dataset:
    """Return the SEG object of a labelled series.

    Segments are the declared labels without the background, in the order of their ids, numbered from 1;
    structures the case does not have are declared all the same.

    Args:
        series: Slices of the image, in the order of the third array axis.
        labels: `[1,H,W,D]` ids on the image's grid.
        names: Id -> name.
        identity: What the headers say.
    """
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    ids = [label_id for label_id in sorted(names) if label_id]
    numbers = np.zeros(max(ids) + 1, np.uint16)
    numbers[ids] = np.arange(1, len(ids) + 1)
    structure = CodedConcept("123037004", "SCT", "Body structure")
    method = hd.AlgorithmIdentificationSequence(
        name="sparseg synth" if identity.synthetic else "label map converted by sparseg",
        family=CodedConcept(*(_DEFORMABLE if identity.synthetic else _BY_HAND)),
        version="1",
    )
    kinds = hd.seg.SegmentAlgorithmTypeValues
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=names[label_id][:64],
            segmented_property_category=structure,
            segmented_property_type=structure,
            algorithm_type=kinds.AUTOMATIC if identity.synthetic else kinds.SEMIAUTOMATIC,
            algorithm_identification=method,
            tracking_id=f"{identity.case} {number}"[:64],
            tracking_uid=identity.uid(identity.case, "tracking", number),
        )
        for number, label_id in enumerate(ids, start=1)
    ]
    # highdicom wants [slice, row, column].
    frames = numbers[labels.array[0]].transpose(2, 1, 0)
    segmentation = hd.seg.Segmentation(
        source_images=series,
        pixel_array=np.ascontiguousarray(frames),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=identity.uid(identity.case, "segmentation series"),
        series_number=2,
        sop_instance_uid=identity.uid(identity.case, "segmentation"),
        instance_number=1,
        # A SEG object needs at least one frame.
        omit_empty_frames=bool(frames.any()),
        manufacturer="sparseg",
        manufacturer_model_name="sparseg",
        software_versions="1",
        device_serial_number="0",
        content_label="LABELS",
        content_description=identity.derivation[:64],
        series_description="SYNTHETIC labels" if identity.synthetic else "labels",
    )
    _make_repeatable(segmentation, identity)
    return segmentation


def _make_repeatable(segmentation: Dataset, identity: Identity) -> None:
    """Replace the time of writing and the random UID of the frame order."""
    stamp(segmentation)
    segmentation.SeriesDate, segmentation.SeriesTime = "20000101", "000000"
    organization = identity.uid(identity.case, "dimensions")
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for equipment in segmentation.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = "20000101"
    for item in segmentation.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
