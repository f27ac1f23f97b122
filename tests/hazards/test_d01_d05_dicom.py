"""Rows D1 to D5: DICOM series that are incomplete, scrambled, mixed, tilted or of odd make."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from sparseg.errors import SparsegError
from sparseg.volumes.dicom import read_dicom_series

from .dicom_faults import (
    AXIAL,
    COLUMNS,
    ORIGIN,
    ROWS,
    SLICES,
    STEP,
    expected_affine,
    make_multiframe,
    make_slices,
    save_series,
    stored_values,
)
from .figures import Figure
from .nifti_faults import refused


def _hu() -> np.ndarray:
    """Return the expected `[columns, rows, slices]`."""
    return stored_values().transpose(2, 1, 0).astype(np.float32) - 1024


def _move(dataset: Dataset, shift: tuple[float, float, float]) -> None:
    dataset.ImagePositionPatient = [
        float(a) + b for a, b in zip(dataset.ImagePositionPatient, shift, strict=True)
    ]


def test_d1_sound_series(tmp_path: Path) -> None:
    volume = read_dicom_series(save_series(tmp_path / "s", make_slices()))
    np.testing.assert_array_equal(volume.array[0], _hu())
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-9)


@pytest.mark.hazard("D1", "silent accepts")
@pytest.mark.parametrize("missing", [[3], [2, 3, 4], [1, 5]])
def test_d1_missing(tmp_path: Path, missing: list[int]) -> None:
    slices = [item for index, item in enumerate(make_slices()) if index not in missing]
    hole = f"{ORIGIN[2] + (missing[0] - 1) * STEP:g}"
    with refused("dicom-missing", hole, "step 2.5 mm"):
        read_dicom_series(save_series(tmp_path / "s", slices))


@pytest.mark.hazard("D1", "silent accepts")
def test_d1_duplicate(tmp_path: Path) -> None:
    slices = make_slices()
    slices.append(copy.deepcopy(slices[4]))
    with refused("dicom-duplicate", "110"):
        read_dicom_series(save_series(tmp_path / "s", slices))


@pytest.mark.hazard("D1", "silent accepts")
def test_d1_every_slice_twice(tmp_path: Path) -> None:
    with refused("dicom-duplicate"):
        read_dicom_series(save_series(tmp_path / "s", [*make_slices(), *make_slices()]))


@pytest.mark.hazard("D1", "silent accepts")
@pytest.mark.parametrize("shift", [0.2, -0.8])
def test_d1_not_uniform(tmp_path: Path, shift: float) -> None:
    slices = make_slices()
    _move(slices[3], (0, 0, shift))
    with refused("dicom-nonuniform", "steps from"):
        read_dicom_series(save_series(tmp_path / "s", slices))


def test_d1_positions_rounded_to_hundredths_are_accepted(tmp_path: Path) -> None:
    slices = make_slices()
    for index, item in enumerate(slices):
        item.ImagePositionPatient = [-40, -60, round(100 + index * 0.625, 2)]
    volume = read_dicom_series(save_series(tmp_path / "s", slices))
    assert volume.spacing[2] == pytest.approx(0.625, abs=0.002)


@pytest.mark.hazard("D2", "series out of order")
@pytest.mark.parametrize("numbers", ["reversed", "shuffled", "all one"])
def test_d2_order_is_by_position(tmp_path: Path, numbers: str) -> None:
    slices = make_slices()
    order = {"reversed": range(SLICES, 0, -1), "shuffled": (3, 1, 8, 2, 7, 5, 4, 6), "all one": [1] * SLICES}
    for item, number in zip(slices, order[numbers], strict=True):
        item.InstanceNumber = number
    rng = np.random.default_rng(6)
    shuffled = [slices[index] for index in rng.permutation(SLICES)]
    volume = read_dicom_series(save_series(tmp_path / "s", shuffled))
    np.testing.assert_array_equal(volume.array[0], _hu())


@pytest.mark.hazard("D3", "mixtures read as one volume")
def test_d3_localizer_is_left_out(tmp_path: Path) -> None:
    scout = make_slices((1, 0, 0, 0, 0, -1))[0]
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    volume = read_dicom_series(save_series(tmp_path / "s", [scout, *make_slices()]))
    np.testing.assert_array_equal(volume.array[0], _hu())
    with refused("dicom-none", "only localizers"):
        read_dicom_series(save_series(tmp_path / "only", [scout]))


@pytest.mark.hazard("D3", "mixtures read as one volume")
def test_d3_two_series(tmp_path: Path) -> None:
    others = make_slices()
    for item in others:
        item.SeriesInstanceUID, item.SeriesDescription, item.RescaleIntercept = "1.2.4", "lung", 0
    folder = save_series(tmp_path / "s", [*make_slices(), *others])
    with refused("dicom-several-series", "1.2.3 (8 slices)", "1.2.4 (8 slices)"):
        read_dicom_series(folder)
    np.testing.assert_array_equal(read_dicom_series(folder, series_uid="1.2.4").array[0], _hu() + 1024)
    with refused("dicom-no-such-series", "1.2.4 (8"):
        read_dicom_series(folder, series_uid="9.9")


@pytest.mark.hazard("D3", "mixtures read as one volume")
@pytest.mark.parametrize("what", ["spacing", "size", "orientation", "frame"])
def test_d3_mixture_in_one_series(tmp_path: Path, what: str) -> None:
    slices = make_slices()
    if what == "spacing":
        slices[5].PixelSpacing = [0.8, 0.71]
    elif what == "size":
        slices[5].Rows, slices[5].Columns = COLUMNS, ROWS
    elif what == "frame":
        slices[5].FrameOfReferenceUID = "1.5"
    else:
        slices[5].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
    with refused("dicom-mixed", "005"):
        read_dicom_series(save_series(tmp_path / "s", slices))


@pytest.mark.hazard("D4", "silent accepts")
def test_d4_gantry_tilt(tmp_path: Path) -> None:
    slices = make_slices()
    for index, item in enumerate(slices):
        _move(item, (0, float(index), 0))
    with refused("dicom-tilt", "7 mm over 17.5 mm", "21.8 degrees"):
        read_dicom_series(save_series(tmp_path / "s", slices))


def test_d4_a_rotated_stack_is_no_tilt(tmp_path: Path) -> None:
    turn = np.radians(25)
    cosines = (1.0, 0.0, 0.0, 0.0, round(float(np.cos(turn)), 6), round(float(np.sin(turn)), 6))
    volume = read_dicom_series(save_series(tmp_path / "s", make_slices(cosines)))
    np.testing.assert_array_equal(volume.array[0], _hu())
    np.testing.assert_allclose(volume.affine, expected_affine(cosines), atol=1e-4)


@pytest.mark.hazard("D5", "silent accepts")
@pytest.mark.parametrize("change", [-2, -50, 2])
def test_d5_short_or_long_pixel_data(tmp_path: Path, change: int) -> None:
    slices = make_slices()
    data = slices[2].PixelData
    slices[2].PixelData = data[:change] if change < 0 else data + bytes(change)
    with refused("dicom-pixel-bytes", "002", "216"):
        read_dicom_series(save_series(tmp_path / "s", slices))


@pytest.mark.hazard("D5", "silent accepts")
def test_d5_no_pixel_data(tmp_path: Path) -> None:
    slices = make_slices()
    del slices[2].PixelData
    with refused("dicom-pixel-bytes", "002"):
        read_dicom_series(save_series(tmp_path / "s", slices))


@pytest.mark.hazard("D5", "silent accepts")
@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("ImagePositionPatient", None, "dicom-no-position"),
        ("ImageOrientationPatient", None, "dicom-no-orientation"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "dicom-bad-orientation"),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0], "dicom-bad-orientation"),
        ("PixelSpacing", None, "dicom-no-spacing"),
        ("PixelSpacing", [0, 1], "dicom-no-spacing"),
        ("RescaleSlope", None, "dicom-rescale"),
        ("RescaleSlope", 0, "dicom-rescale"),
        ("PhotometricInterpretation", "MONOCHROME1", "dicom-pixels"),
        ("SamplesPerPixel", 3, "dicom-pixels"),
        ("BitsAllocated", 12, "dicom-pixels"),
        ("HighBit", 14, "dicom-pixels"),
        ("BitsStored", 12, "dicom-pixels"),
        ("Rows", 0, "dicom-size"),
        ("Rows", None, "dicom-header"),
        ("NumberOfFrames", 2, "dicom-multiframe"),
    ],
)
def test_d5_header_faults(tmp_path: Path, keyword: str, value: object, code: str) -> None:
    slices = make_slices()
    if value is None:
        delattr(slices[1], keyword)
    else:
        setattr(slices[1], keyword, value)
    with refused(code, "001"):
        read_dicom_series(save_series(tmp_path / "s", slices))


def test_d5_unnormalised_cosines(tmp_path: Path) -> None:
    slices = make_slices()
    for item in slices:
        item.ImageOrientationPatient = [1.001, 0, 0, 0, 0.999, 0]
    volume = read_dicom_series(save_series(tmp_path / "s", slices))
    np.testing.assert_allclose(volume.affine, expected_affine(AXIAL), atol=1e-9)


def test_d5_slope_and_intercept_per_slice(tmp_path: Path, figure: Figure) -> None:
    slices = make_slices()
    for index, item in enumerate(slices):
        item.RescaleSlope, item.RescaleIntercept = 0.5 + index, -1000 - index
    volume = read_dicom_series(save_series(tmp_path / "s", slices))
    k = np.arange(SLICES)
    expected = stored_values().transpose(2, 1, 0) * (0.5 + k) - 1000 - k
    figure("D5", "largest error in HU", abs(volume.array[0] - expected.astype(np.float32)).max(), limit=0)
    np.testing.assert_array_equal(volume.array[0], expected.astype(np.float32))


def test_d5_signed_pixels(tmp_path: Path) -> None:
    slices, values = make_slices(), stored_values().astype(np.int16) - 1500
    for item, plane in zip(slices, values, strict=True):
        item.PixelRepresentation, item.PixelData = 1, plane.tobytes()
    volume = read_dicom_series(save_series(tmp_path / "s", slices))
    np.testing.assert_array_equal(volume.array[0], values.transpose(2, 1, 0).astype(np.float32) - 1024)


def test_d5_multiframe(tmp_path: Path, figure: Figure) -> None:
    volume = read_dicom_series(save_series(tmp_path / "s", [make_multiframe()]))
    expected = stored_values().transpose(2, 1, 0) * (1.0 + np.arange(SLICES)) - 1024
    figure("D5", "largest error in HU", abs(volume.array[0] - expected.astype(np.float32)).max(), limit=0)
    np.testing.assert_array_equal(volume.array[0], expected.astype(np.float32))
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-9)


def test_d5_multiframe_with_too_few_descriptions(tmp_path: Path) -> None:
    dataset = make_multiframe()
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:-1]
    with refused("dicom-multiframe", "7 descriptions for 8 frames"):
        read_dicom_series(save_series(tmp_path / "s", [dataset]))


def test_d5_other_files_in_the_folder(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "s", make_slices())
    for name in ("DICOMDIR", "readme.txt", ".DS_Store"):
        (folder / name).write_bytes(b"text")
    report = make_slices()[0]
    report.Modality, report.SeriesInstanceUID = "SR", "1.9"
    del report.Rows
    save_series(folder, [report], "report{}".format)
    np.testing.assert_array_equal(read_dicom_series(folder).array[0], _hu())
    (folder / "stump").write_bytes((folder / "001").read_bytes()[:100])
    with refused("dicom-not-dicom", "stump"):
        read_dicom_series(folder)


def test_d5_cut_files_give_typed_errors_or_the_truth(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "s", make_slices())
    whole = (folder / "003").read_bytes()
    for keep in range(0, len(whole), 23):
        (folder / "003").write_bytes(whole[:keep])
        with pytest.raises(SparsegError):
            read_dicom_series(folder)


def test_d5_value_shorter_than_its_type(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "s", make_slices())
    whole = (folder / "001").read_bytes()
    damaged = whole.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0UL")
    assert damaged != whole
    (folder / "001").write_bytes(damaged)
    with refused("dicom-header", "001"):
        read_dicom_series(folder)


def test_d5_damaged_headers_give_typed_errors(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "s", make_slices()[:2])
    whole = (folder / "001").read_bytes()
    rng = np.random.default_rng(7)
    end_of_header = whole.index(make_slices()[1].PixelData)
    for position in rng.integers(132, end_of_header, 60):
        damaged = bytearray(whole)
        damaged[position] = rng.integers(0, 256)
        (folder / "001").write_bytes(damaged)
        try:
            volume = read_dicom_series(folder)
        except SparsegError:
            continue
        assert np.isfinite(volume.array).all()
