"""Compressed DICOM: decoded exactly by either decoder, and cut streams refused."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, RLELossless

from hazards.dicom_faults import make_multiframe, make_slices, save_series, stored_values
from sparseg.errors import VolumeError
from sparseg.volumes import dicom_pixels
from sparseg.volumes.dicom import read_dicom_series


def _jpeg2000(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG2000", irreversible=False, no_jp2=True, num_resolutions=1)
    return buffer.getvalue()


def _jpeg2000_slices() -> list[Dataset]:
    slices = make_slices()
    for index, (item, values) in enumerate(zip(slices, stored_values(), strict=True)):
        item.file_meta.TransferSyntaxUID = JPEG2000Lossless
        item.PixelData = encapsulate([_jpeg2000(values)])
        item["PixelData"].VR = "OB"
        item.RescaleSlope, item.RescaleIntercept = 1.5, -1000 - index
    return slices


@pytest.fixture
def without_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda _: SimpleNamespace(is_available=False))


def _expected() -> np.ndarray:
    return (stored_values().transpose(2, 1, 0) * 1.5 - 1000 - np.arange(8)).astype(np.float32)


def test_jpeg2000_by_pydicom(tmp_path: Path) -> None:
    assert get_decoder(JPEG2000Lossless).is_available
    volume = read_dicom_series(save_series(tmp_path / "s", _jpeg2000_slices()))
    np.testing.assert_array_equal(volume.array[0], _expected())


@pytest.mark.usefixtures("without_decoder")
def test_jpeg2000_by_gdcm_keeps_stored_values_and_rescales_once(tmp_path: Path) -> None:
    volume = read_dicom_series(save_series(tmp_path / "s", _jpeg2000_slices()))
    np.testing.assert_array_equal(volume.array[0], _expected())


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_cut_jpeg2000_stream_is_refused(tmp_path: Path, cut: int) -> None:
    slices = _jpeg2000_slices()
    slices[3].PixelData = encapsulate([_jpeg2000(stored_values()[3])[:-cut]])
    with pytest.raises(VolumeError) as info:
        read_dicom_series(save_series(tmp_path / "s", slices))
    assert info.value.code == "dicom-pixel-bytes"


def _rle_slices() -> list[Dataset]:
    slices = make_slices()
    for item, values in zip(slices, stored_values(), strict=True):
        item.compress(RLELossless, values, generate_instance_uid=False)
    return slices


def test_run_length_by_pydicom(tmp_path: Path) -> None:
    volume = read_dicom_series(save_series(tmp_path / "s", _rle_slices()))
    np.testing.assert_array_equal(volume.array[0], stored_values().transpose(2, 1, 0) - np.float32(1024))


@pytest.mark.usefixtures("without_decoder")
def test_run_length_by_gdcm(tmp_path: Path) -> None:
    volume = read_dicom_series(save_series(tmp_path / "s", _rle_slices()))
    np.testing.assert_array_equal(volume.array[0], stored_values().transpose(2, 1, 0) - np.float32(1024))


@pytest.mark.usefixtures("without_decoder")
def test_compressed_multiframe_by_gdcm(tmp_path: Path) -> None:
    dataset = make_multiframe()
    dataset.compress(RLELossless, stored_values()[::-1], generate_instance_uid=False)
    volume = read_dicom_series(save_series(tmp_path / "s", [dataset]))
    expected = stored_values().transpose(2, 1, 0) * (1.0 + np.arange(8)) - 1024
    np.testing.assert_array_equal(volume.array[0], expected.astype(np.float32))


@pytest.mark.usefixtures("without_decoder")
def test_undecodable_stream_is_a_typed_error(tmp_path: Path) -> None:
    slices = _rle_slices()
    slices[2].PixelData = encapsulate([b"\1\0\0\0" + bytes(80)])
    with pytest.raises(VolumeError) as info:
        read_dicom_series(save_series(tmp_path / "s", slices))
    assert info.value.code == "dicom-pixel-data"
