"""Stored pixel values of one DICOM file, its byte count checked; compressed data by pydicom, else by GDCM."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import CTImageStorage, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from sparseg.errors import VolumeError
from sparseg.volumes.dicom_header import DICOM_FAULTS

_END_MARKED = {*JPEGTransferSyntaxes, *JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes}
_PIXEL_KEYWORDS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "NumberOfFrames",
    "PixelData",
]


def read_stored_pixels(path: Path) -> np.ndarray:
    """Return the stored integers `[frames, rows, columns]` of a file whose header has been checked.

    Raises:
        VolumeError: too few or too many bytes, damaged compressed data, or no decoder for it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, specific_tags=_PIXEL_KEYWORDS)
            shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
            _check_bytes(dataset, shape, path)
            syntax = dataset.file_meta.TransferSyntaxUID
            if not syntax.is_encapsulated or get_decoder(syntax).is_available:
                pixels = dataset.pixel_array
            else:
                pixels = _decode_with_gdcm(dataset)
    except DICOM_FAULTS as error:
        raise VolumeError(
            "pixel data must be decodable",
            received=f"{type(error).__name__} while decoding",
            remedy="copy the file again, or decompress the series with a DICOM toolkit",
            where=path,
            code="dicom-pixel-data",
        ) from error
    if pixels.size != np.prod(shape):
        raise VolumeError(
            f"pixel data must decode to {shape} values",
            received=pixels.shape,
            remedy="copy or export the file again",
            where=path,
            code="dicom-pixel-data",
        )
    frames: np.ndarray = pixels.reshape(shape)
    return frames


def _check_bytes(dataset: Dataset, shape: tuple[int, int, int], path: Path) -> None:
    """Check the length of plain data, or that every compressed frame is there and reaches its end mark."""
    data = dataset.get("PixelData")
    if data is None:
        raise _short("no pixel data", "pixel data must be present", path)
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        expected = int(np.prod(shape)) * dataset.BitsAllocated // 8
        if len(data) not in (expected, expected + expected % 2):
            raise _short(f"{len(data)} bytes", f"pixel data must hold {expected} bytes", path)
        return
    frames = list(generate_frames(data, number_of_frames=shape[0]))
    if len(frames) != shape[0]:
        raise _short(f"{len(frames)} frames", f"pixel data must hold {shape[0]} frames", path)
    if dataset.file_meta.TransferSyntaxUID in _END_MARKED:
        for frame in frames:
            # Decoders fill in what a cut JPEG or JPEG 2000 stream lacks, without a word.
            if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
                raise _short("a frame without its end mark", "compressed frames must be complete", path)


def _short(received: str, rule: str, path: Path) -> VolumeError:
    return VolumeError(
        rule, received=received, remedy="copy or export the file again", where=path, code="dicom-pixel-bytes"
    )


def _decode_with_gdcm(dataset: Dataset) -> np.ndarray:
    """Decode through SimpleITK, which sees a bare file of checked fields and applies no rescale."""
    import SimpleITK as sitk  # noqa: N813 (slow to load, and only this rare path needs it)

    bare = Dataset()
    for keyword in _PIXEL_KEYWORDS:
        if keyword in dataset:
            bare[keyword] = dataset[keyword]
    bare.SOPClassUID = CTImageStorage
    bare.SOPInstanceUID = "1.2.3"
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = CTImageStorage
    bare.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        bare.save_as(path, enforce_file_format=True)
        pixels: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    return pixels
