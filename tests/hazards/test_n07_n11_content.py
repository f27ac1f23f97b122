"""Rows N7 to N11: axes, voxel types, scaling, non-finite values, odd but valid sizes."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparseg.volumes.nifti import read_nifti

from .figures import Figure
from .nifti_faults import base_array, nifti_bytes, patched, refused, save


@pytest.mark.hazard("N7", "valid shapes refused or changed")
def test_n07_trailing_axis_is_squeezed(tmp_path: Path) -> None:
    raw = nifti_bytes(base_array()[..., None, None])
    assert raw[40:42] == b"\x05\x00"
    np.testing.assert_array_equal(read_nifti(save(tmp_path / "a.nii", raw)).array[0], base_array())


@pytest.mark.hazard("N7", "valid shapes refused or changed")
def test_n07_fourth_axis_is_channels(tmp_path: Path) -> None:
    stacked = np.stack([base_array(), base_array() + 1, base_array() * 2], axis=-1)
    volume = read_nifti(save(tmp_path / "a.nii", nifti_bytes(stacked)))
    assert volume.num_channels == 3
    np.testing.assert_array_equal(volume.array[2], base_array() * 2)


def test_n07_channels_are_no_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", nifti_bytes(np.ones((4, 5, 6, 2), dtype=np.uint8)))
    with refused("label-channels"):
        read_nifti(path, kind="label")


@pytest.mark.hazard("N7", "silent accepts")
@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((4, 5), dtype=np.float32), "nifti-not-3d"),
        (np.zeros((4,), dtype=np.float32), "nifti-not-3d"),
        (np.zeros((4, 5, 6, 2, 2), dtype=np.float32), "nifti-not-3d"),
        (np.zeros((4, 5, 6, 1, 3), dtype=np.float32), "nifti-not-3d"),
        (np.zeros((4, 5, 6), dtype=np.complex64), "nifti-not-scalar"),
        (np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), "nifti-not-scalar"),
    ],
)
def test_n07_other_shapes(tmp_path: Path, array: np.ndarray, code: str) -> None:
    with refused(code):
        read_nifti(save(tmp_path / "a.nii", nifti_bytes(array)))


@pytest.mark.hazard("N8", "types and byte orders read wrong")
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_n08_types_and_byte_orders(tmp_path: Path, dtype: str, version: int, endianness: str) -> None:
    array = np.random.default_rng(1).integers(0, 120, (5, 4, 3)).astype(dtype)
    array[0, 0, 0] = 100 if dtype == "i1" else 200
    path = save(tmp_path / "a.nii.gz", nifti_bytes(array, version=version, endianness=endianness))
    np.testing.assert_array_equal(read_nifti(path).array[0], array.astype(np.float32))
    np.testing.assert_array_equal(read_nifti(path, kind="label").array[0], array.astype(np.int32))


@pytest.mark.parametrize(
    ("slope", "inter", "true_slope", "true_inter"),
    [
        (2, -1024, 2, -1024),
        (0, 5, 1, 0),
        (float("nan"), float("nan"), 1, 0),
        (1, 0, 1, 0),
        (-0.1, 3, -0.1, 3),
    ],
)
def test_n08_scaling(
    tmp_path: Path, figure: Figure, slope: float, inter: float, true_slope: float, true_inter: float
) -> None:
    stored = np.random.default_rng(2).integers(-3000, 3000, (5, 4, 3)).astype(np.int16)
    path = save(tmp_path / "a.nii", patched(nifti_bytes(stored), 112, "ff", slope, inter))
    expected = stored * np.float64(np.float32(true_slope)) + np.float64(np.float32(true_inter))
    found = read_nifti(path).array[0]
    figure("N8", "largest error in HU", abs(found - expected.astype(np.float32)).max(), limit=0)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    np.testing.assert_array_equal(read_nifti(path).array[0], nib.load(path).get_fdata(dtype=np.float32))


@pytest.mark.hazard("N8", "silent accepts")
@pytest.mark.parametrize(
    "scaling", [(float("inf"), 0), (float("nan"), 0), (2, float("nan")), (1, float("-inf"))]
)
def test_n08_bad_scaling(tmp_path: Path, scaling: tuple[float, float]) -> None:
    with refused("nifti-bad-scaling"):
        read_nifti(save(tmp_path / "a.nii", patched(nifti_bytes(), 112, "ff", *scaling)))


@pytest.mark.hazard("N9", "silent accepts")
@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "f4"), (np.inf, "f4"), (-np.inf, "f8"), (1e40, "f8"), (np.nan, "f8")]
)
def test_n09_not_finite(tmp_path: Path, value: float, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    array = base_array().astype(dtype)
    array[5, 12, 8] = value
    path = save(tmp_path / "a.nii", nifti_bytes(array))
    with refused("nifti-nonfinite", "1 of 1680"):
        read_nifti(path)
    with caplog.at_level(logging.WARNING, logger="sparseg"):
        filled = read_nifti(path, nonfinite=-7)
    expected = base_array()
    expected[5, 12, 8] = -7
    np.testing.assert_array_equal(filled.array[0], expected)
    assert "1 voxels were not finite" in caplog.text


@pytest.mark.hazard("N9", "silent accepts")
def test_n09_all_not_finite_and_bad_fill(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", nifti_bytes(np.full((3, 3, 3), np.nan, dtype=np.float32)))
    with refused("nifti-nonfinite", "27 of 27"):
        read_nifti(path, nonfinite=float("inf"))
    assert (read_nifti(path, nonfinite=0).array == 0).all()


@pytest.mark.hazard("N9", "silent accepts")
def test_n09_opposite_infinities(tmp_path: Path) -> None:
    array = base_array()
    array[0, 0, 0], array[1, 1, 1] = np.inf, -np.inf
    with refused("nifti-nonfinite", "2 of"):
        read_nifti(save(tmp_path / "a.nii", nifti_bytes(array)))


@pytest.mark.parametrize("value", [0, 7])
def test_n10_constant(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "a.nii", nifti_bytes(np.full((4, 5, 6), value, dtype=np.float32)))
    assert (read_nifti(path).array == value).all()


@pytest.mark.parametrize("shape", [(3, 3, 3), (24, 28, 1), (64, 64, 3), (1, 1, 1), (1, 9, 9)])
def test_n11_small_and_thin(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    volume = read_nifti(save(tmp_path / "a.nii.gz", nifti_bytes(array)))
    assert volume.shape == shape
    np.testing.assert_array_equal(volume.array[0], array)


@pytest.mark.parametrize("bad", [-1.0, 0.9999, np.nan, np.inf, 2.0**31])
def test_l01_label_ids(tmp_path: Path, bad: float) -> None:
    labels = np.zeros((4, 5, 6))
    labels[1, 2, 3] = 300
    path = save(tmp_path / "good.nii", nifti_bytes(labels))
    assert read_nifti(path, kind="label").array[0, 1, 2, 3] == 300
    labels[0, 0, :2] = bad
    with refused("label-ids", "2 voxels"):
        read_nifti(save(tmp_path / "bad.nii", nifti_bytes(labels)), kind="label")
