"""Predicted labels as a DICOM object (SEG or RTSTRUCT) of the series they were predicted from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from sparseg.errors import VolumeError
from sparseg.predict.colours import label_colours
from sparseg.volumes.dicom import series_slices
from sparseg.volumes.dicom_header import DICOM_FAULTS, SliceHeader, unreadable_header
from sparseg.volumes.dicom_object import PATIENT_AND_STUDY, PATIENT_WHERE_KNOWN
from sparseg.volumes.dicom_rtstruct_writer import (
    SliceReference,
    StructureSetHeader,
    make_structure_set,
    write_structure_set,
)
from sparseg.volumes.dicom_seg_writer import SegmentationHeader, make_segmentation, write_segmentation

_SERIES_NUMBER = 1000
_STRUCTURES_SERIES_NUMBER = 1001
# An object cannot say where it belongs without these.
_REFERENCES = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)
# highdicom copies whole modules, free text and scanner included: what is not read cannot get into the object.
_READ = [
    *_REFERENCES,
    *PATIENT_AND_STUDY,
    *PATIENT_WHERE_KNOWN,
    "SpecificCharacterSet",
    "Modality",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


class SourceSeries:
    """Headers of the series that labels will refer to, in the order of its grid.

    The headers hold the patient's data, as the object must; they are kept in memory, and neither errors
    nor reports quote them.

    Args:
        folder: DICOM series folder.
        series_uid: SeriesInstanceUID to take from a folder that holds several.

    Raises:
        VolumeError: not a DICOM series, a damaged file, several multi-frame files, or no UIDs to refer to.
        GeometryError: missing, duplicate, uneven, tilted or mixed slices, or no position.
    """

    def __init__(self, folder: Path, *, series_uid: str | None = None) -> None:
        if folder.is_file():
            raise VolumeError(
                "a DICOM output needs a DICOM series as input, which it refers to",
                received=f"a {''.join(folder.suffixes[-2:]) or 'plain'} file",
                remedy="give the series folder (or its .zip), or write this input with --format nii.gz",
                where=folder,
                code="dicom-out-input",
            )
        self.folder = folder
        slices, self.affine = series_slices(folder, series_uid=series_uid)
        self.frame_order = _frame_order(slices, folder)
        cosines = _direction_cosines(self.affine)
        self.datasets = [_read_header(item, cosines) for item in slices if item.frame == self.frame_order[0]]

    def write(
        self,
        path: Path,
        labels: np.ndarray,
        names: Mapping[int, str],
        *,
        kind: Literal["BINARY", "LABELMAP"] = "BINARY",
    ) -> None:
        """Write labels as one SEG object in one step.

        The object carries what DICOM demands of the patient and study of the series (name, id, birth date,
        sex, accession number, study id and date, referring physician) and none of the input's other texts.

        Args:
            path: Output file.
            labels: Ids `[columns, rows, slices]` on the grid of the series.
            names: Id -> name.
            kind: BINARY or LABELMAP.

        Raises:
            LabelError, GeometryError, VolumeError: labels that do not fit, or the disk refuses.
        """
        release = version("sparseg")
        header = SegmentationHeader(
            algorithm="sparseg",
            family="network",
            version=release,
            software=(f"sparseg {release}", f"highdicom {version('highdicom')}"),
            description="predicted by a network, not reviewed",
            series_description="sparseg segmentation",
            series_number=_SERIES_NUMBER,
            colours=label_colours(names),
        )
        in_file_order = labels if len(self.datasets) > 1 else labels[..., np.argsort(self.frame_order)]
        write_segmentation(path, make_segmentation(self.datasets, in_file_order, names, header, kind=kind))

    def write_structures(self, path: Path, labels: np.ndarray, names: Mapping[int, str]) -> None:
        """Write labels as one structure set in one step, with the same data of the patient as `write`.

        Args:
            path: Output file.
            labels: Ids `[columns, rows, slices]` on the grid of the series.
            names: Id -> name.

        Raises:
            LabelError, GeometryError, VolumeError: labels that do not fit, or the disk refuses.
        """
        header = StructureSetHeader(
            software=(f"sparseg {version('sparseg')}",),
            description="EXPERIMENTAL. Predicted by a network, not reviewed. Not for treatment planning.",
            series_description="sparseg structures (experimental)",
            series_number=_STRUCTURES_SERIES_NUMBER,
            colours=label_colours(names),
        )
        slices = self._slice_references()
        write_structure_set(
            path, make_structure_set(self.datasets[0], slices, labels, self.affine, names, header)
        )

    def _slice_references(self) -> list[SliceReference]:
        if len(self.datasets) == len(self.frame_order):
            return [SliceReference(item.SOPClassUID, item.SOPInstanceUID) for item in self.datasets]
        only = self.datasets[0]
        return [
            SliceReference(only.SOPClassUID, only.SOPInstanceUID, frame + 1) for frame in self.frame_order
        ]


def _frame_order(slices: Sequence[SliceHeader], folder: Path) -> list[int]:
    """Return the frame that each slice is: all 0 in single-frame files, else those of the one file."""
    if all(item.num_frames == 1 for item in slices):
        return [0] * len(slices)
    order = [item.frame for item in slices]
    if len({item.path for item in slices}) > 1 or sorted(order) != list(range(slices[0].num_frames)):
        raise VolumeError(
            "a DICOM output can refer to single-frame images, or to one multi-frame image",
            received=f"{len({item.path for item in slices})} multi-frame files",
            remedy="separate the files, or write this input with --format nii.gz",
            where=folder,
            code="dicom-out-multiframe",
        )
    return order


def _direction_cosines(affine: np.ndarray) -> list[str]:
    """Return ImageOrientationPatient of a grid: two unit vectors at right angles, the same for all slices."""
    columns = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    lps = columns * [[-1.0], [-1.0], [1.0]]
    return [str(format_number_as_ds(float(value) + 0.0)) for value in lps.T.ravel()]


def _read_header(item: SliceHeader, cosines: list[str]) -> Dataset:
    """Return the header of a slice with all that highdicom takes for granted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(item.path, stop_before_pixels=True, specific_tags=_READ)
            absent = [keyword for keyword in _REFERENCES if not dataset.get(keyword)]
    except DICOM_FAULTS as error:
        raise unreadable_header(item.path, error) from error
    if absent:
        raise VolumeError(
            "the images must have the UIDs that a DICOM output refers to",
            received=f"no {', '.join(absent)}",
            remedy="export the series again with its UIDs, or write this input with --format nii.gz",
            where=item.path,
            code="dicom-out-uids",
        )
    for keyword in PATIENT_AND_STUDY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    if item.num_frames == 1:
        dataset.ImageOrientationPatient = cosines
    else:
        _share_plane(dataset, cosines)
    return dataset


def _share_plane(dataset: Dataset, cosines: list[str]) -> None:
    """State the frames' orientation and spacing once for all, where highdicom looks for them.

    A file may say both per frame; those that differ were refused when the series was read.
    """
    plane = Dataset()
    plane.ImageOrientationPatient = cosines
    if not dataset.get("SharedFunctionalGroupsSequence"):
        dataset.SharedFunctionalGroupsSequence = [Dataset()]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence = [plane]
    first = next(iter(dataset.get("PerFrameFunctionalGroupsSequence") or ()), Dataset())
    if "PixelMeasuresSequence" not in shared and "PixelMeasuresSequence" in first:
        shared.PixelMeasuresSequence = first.PixelMeasuresSequence
