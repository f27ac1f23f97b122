"""Makes small DICOM series, sound and damaged, with known values in HU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

ROWS, COLUMNS, SLICES = 9, 12, 8
SPACING = (0.8, 0.7)  # between rows, between columns
STEP = 2.5
ORIGIN = np.array([-40.0, -60.0, 100.0])
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def stored_values() -> np.ndarray:
    """Return seeded stored values `[slices, rows, columns]`."""
    return np.random.default_rng(5).integers(0, 3000, (SLICES, ROWS, COLUMNS)).astype(np.uint16)


def expected_affine(cosines: tuple[float, ...] = AXIAL) -> np.ndarray:
    """Return the RAS affine of (column, row, slice), by hand from the DICOM standard, C.7.6.2.1.1."""
    along_row, along_column = np.array(cosines[:3]), np.array(cosines[3:])
    affine = np.eye(4)
    affine[:3, 0] = along_row * SPACING[1]
    affine[:3, 1] = along_column * SPACING[0]
    affine[:3, 2] = np.cross(along_row, along_column) * STEP
    affine[:3, 3] = ORIGIN
    affine[:2] *= -1
    return affine


def _common(sop_class: str, instance: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, instance
    dataset.SeriesInstanceUID, dataset.SeriesDescription, dataset.Modality = "1.2.3", "abdomen", "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    return dataset


def make_slices(cosines: tuple[float, ...] = AXIAL) -> list[Dataset]:
    """Return one dataset per slice, in order of position."""
    normal = np.cross(cosines[:3], cosines[3:])
    slices = []
    for index, values in enumerate(stored_values()):
        dataset = _common(CTImageStorage, f"1.2.3.{index + 1}")
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [round(float(v), 8) for v in ORIGIN + index * STEP * normal]
        dataset.ImageOrientationPatient = list(cosines)
        dataset.PixelSpacing = list(SPACING)
        dataset.SliceThickness = 5.0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = values.tobytes()
        slices.append(dataset)
    return slices


def make_multiframe() -> Dataset:
    """Return the same series as one enhanced file, frames in reverse order, slope and intercept per frame."""
    dataset = _common(EnhancedCTImageStorage, "1.2.3.100")
    dataset.NumberOfFrames = SLICES
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), 5.0
    plane.ImageOrientationPatient = list(AXIAL)
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in reversed(range(SLICES)):
        position, rescale, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [*ORIGIN[:2].tolist(), float(ORIGIN[2] + index * STEP)]
        rescale.RescaleSlope, rescale.RescaleIntercept = 1 + index, -1024
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [rescale]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = stored_values()[::-1].tobytes()
    return dataset


def save_series(folder: Path, slices: list[Dataset], name: Callable[[int], str] = "{:03d}".format) -> Path:
    """Write the datasets under names without an extension."""
    folder.mkdir(exist_ok=True)
    for index, dataset in enumerate(slices):
        dataset.save_as(folder / name(index), enforce_file_format=True)
    return folder
