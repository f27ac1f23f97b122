"""A volume as single-frame CT or MR images: one dataset per slice along the third array axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from sparseg.errors import GeometryError, VolumeError
from sparseg.volumes.geometry import is_orthogonal, orthogonality_error
from sparseg.volumes.volume import Volume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_INT16 = np.iinfo(np.int16)
_MAX_TEXT = 64
_MAX_DERIVATION = 1024


@dataclass(frozen=True)
class Identity:
    """What the headers of one case say about it.

    Attributes:
        dataset: Title of the dataset.
        case: Name of the case.
        patient: PatientID.
        modality: "CT" or "MR".
        synthetic: Whether the images are not real.
        derivation: How they were made.
    """

    dataset: str
    case: str
    patient: str
    modality: str
    synthetic: bool
    derivation: str

    def uid(self, *parts: object) -> UID:
        """A UID that is the same for the same parts of the same case: equal input gives equal files."""
        return generate_uid(entropy_srcs=[self.dataset, self.patient, *map(str, parts)])


def make_series(image: Volume, identity: Identity) -> list[Dataset]:
    """Return one dataset per slice, in the order of the third array axis.

    Columns run along the first array axis and rows along the second, so that a reader gets the same affine
    back. Values are rounded to whole numbers.

    Args:
        image: `[1,H,W,D]`.
        identity: What the headers say.

    Raises:
        VolumeError: values that int16 cannot hold.
        GeometryError: voxel axes that are not at right angles.
    """
    stored = _stored_values(image)
    if not is_orthogonal(image.affine):
        raise GeometryError(
            "a DICOM series must have voxel axes at right angles",
            received=f"a cosine of {orthogonality_error(image.affine):.3g}",
            remedy="resample the image to an orthogonal grid, or write another layout",
            where=identity.case,
            code="dicom-sheared",
        )
    affine = _RAS_TO_LPS @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :2] / spacing[:2]
    shared = _shared(identity)
    shared.ImageOrientationPatient = [_text(value) for value in cosines.T.ravel()]
    shared.PixelSpacing = [_text(spacing[1]), _text(spacing[0])]
    shared.SliceThickness = _text(spacing[2])
    shared.SpacingBetweenSlices = _text(spacing[2])
    shared.Columns, shared.Rows = stored.shape[:2]
    return [
        _slice(shared, identity, index, affine[:3, 3] + index * affine[:3, 2], stored[..., index])
        for index in range(stored.shape[2])
    ]


def stamp(dataset: Dataset) -> None:
    """Give the fixed date of all written files: a real one would make equal input give different files."""
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = "20000101", "000000"
    dataset.ContentDate, dataset.ContentTime = "20000101", "000000"


def _stored_values(image: Volume) -> np.ndarray:
    """Return `[H,W,D]` int16."""
    values: np.ndarray = np.rint(image.array[0])
    if not (values.min() >= _INT16.min and values.max() <= _INT16.max):
        raise VolumeError(
            f"values of a DICOM series must be finite and from {_INT16.min} to {_INT16.max}",
            received=f"{values.min():g} to {values.max():g}",
            remedy="scale the image, or write another layout",
            where=image.source,
            code="dicom-range",
        )
    stored: np.ndarray = values.astype(np.int16)
    return stored


def _shared(identity: Identity) -> Dataset:
    """What all slices have in common, apart from geometry."""
    ct = identity.modality == "CT"
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage if ct else MRImageStorage
    dataset.PatientID = identity.patient[:_MAX_TEXT]
    dataset.PatientName = "SYNTHETIC^" if identity.synthetic else ""
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID = identity.uid(identity.case, "study")
    dataset.SeriesInstanceUID = identity.uid(identity.case, "series")
    dataset.FrameOfReferenceUID = identity.uid(identity.case, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = ""
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.SeriesNumber = identity.modality, 1
    dataset.Manufacturer = "sparseg"
    dataset.SeriesDescription = "SYNTHETIC" if identity.synthetic else ""
    dataset.DerivationDescription = identity.derivation[:_MAX_DERIVATION]
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if ct else "OTHER"]
    dataset.AcquisitionNumber = 1
    stamp(dataset)
    if ct:
        dataset.KVP, dataset.RescaleType = None, "HU"
        dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
    else:
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "RM", "NONE", ""
        dataset.MRAcquisitionType, dataset.EchoTime, dataset.EchoTrainLength = "3D", None, None
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    return dataset


def _slice(
    shared: Dataset, identity: Identity, index: int, position: np.ndarray, values: np.ndarray
) -> Dataset:
    dataset = Dataset()
    dataset.update(shared)
    dataset.SOPInstanceUID = identity.uid(identity.case, "image", index)
    dataset.InstanceNumber = index + 1
    dataset.ImagePositionPatient = [_text(value) for value in position]
    dataset.PixelData = values.T.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _text(value: float) -> str:
    """A number in the 16 characters that DICOM allows; 0.0 is added to lose the sign of -0."""
    return str(format_number_as_ds(float(value) + 0.0))
