"""Labels of a written series as a DICOM SEG object: one binary segment per structure, without a date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydicom.dataset import Dataset

from sparseg.datasets.writers.dicom_series import Identity, stamp
from sparseg.volumes.volume import Volume

_MAX_ID = 64


def make_segmentation(
    series: Sequence[Dataset], labels: Volume, names: Mapping[int, str], identity: Identity
) -> Dataset:
    """Return the SEG object of a labelled series, as `volumes.dicom_seg_writer` makes it.

    Args:
        series: Slices of the image, in the order of the third array axis.
        labels: `[1,H,W,D]` ids on the image's grid.
        names: Id -> name.
        identity: What the headers say.
    """
    # highdicom is slow to load, and most layouts do without it.
    from sparseg.volumes import dicom_seg_writer as writer

    case, synthetic = identity.case, identity.synthetic
    ids = [label_id for label_id in sorted(names) if label_id]
    header = writer.SegmentationHeader(
        algorithm="sparseg synth" if synthetic else "label map converted by sparseg",
        family="synthesis" if synthetic else "by hand",
        version="1",
        software=("1",),
        description=identity.derivation,
        series_description="SYNTHETIC labels" if synthetic else "labels",
        series_number=2,
        series_uid=identity.uid(case, "segmentation series"),
        instance_uid=identity.uid(case, "segmentation"),
        automatic=synthetic,
        tracking={
            label_id: (f"{case} {number}"[:_MAX_ID], identity.uid(case, "tracking", number))
            for number, label_id in enumerate(ids, start=1)
        },
    )
    segmentation = writer.make_segmentation(series, labels.array[0], names, header)
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
