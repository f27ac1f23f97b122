"""Rows N1 to N6: orientation, spacing and units that are missing, contradictory or unusual."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from sparseg.errors import GeometryError
from sparseg.volumes.nifti import read_nifti
from sparseg.volumes.nifti_affine import world_affine
from sparseg.volumes.nifti_header import NiftiHeader, parse_header

from .figures import Figure
from .nifti_faults import base_affine, base_array, nifti_bytes, patched, refused, rotated, save

FLIPPED = base_affine() @ np.diag([-1, 1, 1, 1])


def _sform(affine: np.ndarray) -> bytes:
    return nifti_bytes(qform=(None, 0), sform=(affine, 1))


@pytest.mark.hazard("N1", "silent accepts")
@pytest.mark.parametrize(("qcode", "scode"), list(product(range(1, 5), range(1, 5))))
def test_n01_forms_disagree(tmp_path: Path, qcode: int, scode: int) -> None:
    path = save(tmp_path / "a.nii", nifti_bytes(qform=(base_affine(), qcode), sform=(FLIPPED, scode)))
    with refused("nifti-qs-disagree", "a.nii", "affine_choice", "34.5"):
        read_nifti(path)


def test_n01_choice_picks_one_form(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", nifti_bytes(qform=(base_affine(), 1), sform=(FLIPPED, 2)))
    np.testing.assert_allclose(read_nifti(path, affine_choice="qform").affine, base_affine(), atol=1e-5)
    np.testing.assert_array_equal(read_nifti(path, affine_choice="sform").affine, FLIPPED)


@pytest.mark.parametrize(("choice", "forms"), [("qform", (0, 1)), ("sform", (1, 0))])
def test_n01_choice_must_exist(tmp_path: Path, choice: str, forms: tuple[int, int]) -> None:
    raw = nifti_bytes(qform=(base_affine(), forms[0]), sform=(base_affine(), forms[1]))
    with refused(f"nifti-no-{choice}"):
        read_nifti(save(tmp_path / "a.nii", raw), affine_choice=choice)


@pytest.mark.parametrize("shift", [0.05, 1.0])
def test_n01_small_shift_is_seen(tmp_path: Path, shift: float) -> None:
    moved = base_affine()
    moved[0, 3] += shift
    with refused("nifti-qs-disagree"):
        read_nifti(save(tmp_path / "a.nii", nifti_bytes(sform=(moved, 1))))


@pytest.mark.hazard("N1", "silent accepts")
@pytest.mark.parametrize("qfac", [-0.5, -2.0, -1e-15])
def test_n01_a_direction_that_readers_take_differently(tmp_path: Path, qfac: float) -> None:
    """Found by header fuzz: nibabel takes it for 1, nifti1_io and ITK for -1."""
    raw = patched(nifti_bytes(sform=(None, 0)), 76, "f", qfac)
    with refused("nifti-bad-qform", "pixdim[0]"):
        read_nifti(save(tmp_path / "a.nii", raw))


@pytest.mark.hazard("N2", "silent accepts")
def test_n02_no_orientation(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", patched(nifti_bytes(), 252, "hh", 0, 0))
    with refused("nifti-no-orientation", "assume_orientation"):
        read_nifti(path)
    assumed = read_nifti(path, assume_orientation="LPS")
    np.testing.assert_allclose(assumed.affine, np.diag([-1.5, -1.0, 2.0, 1.0]))
    np.testing.assert_array_equal(assumed.array[0], base_array())


@pytest.mark.parametrize("codes", ["LRS", "RA", "XYZ", "", "RAS "])
def test_n02_bad_assumption(tmp_path: Path, codes: str) -> None:
    path = save(tmp_path / "a.nii", patched(nifti_bytes(), 252, "hh", 0, 0))
    with pytest.raises(GeometryError, match="orientation must name"):
        read_nifti(path, assume_orientation=codes)


@pytest.mark.parametrize("angles", [(20, 15), (180, 0), (179.99, 15), (90, 90), (-135, 178)])
@pytest.mark.parametrize("mirror", [1, -1])
def test_n03_oblique(tmp_path: Path, figure: Figure, angles: tuple[float, float], mirror: int) -> None:
    affine = rotated(base_affine() @ np.diag([1, 1, mirror, 1]), *angles)
    both = read_nifti(save(tmp_path / "b.nii", nifti_bytes(qform=(affine, 1), sform=(affine, 1))))
    figure("N3", "largest difference of the affine", abs(both.affine - affine).max(), limit=1e-5)
    np.testing.assert_allclose(both.affine, affine, atol=1e-5)
    only_q = read_nifti(save(tmp_path / "q.nii", nifti_bytes(qform=(affine, 1), sform=(None, 0))))
    np.testing.assert_allclose(only_q.affine, affine, atol=2e-3)


def _header(qform: np.ndarray, sform: np.ndarray, shape: tuple[int, int, int]) -> NiftiHeader:
    raw = nifti_bytes(qform=(qform, 1), sform=(sform, 1))[:352]
    return parse_header(patched(raw, 42, "3h", *shape), where="a.nii")


def test_n03_float32_quaternion_of_a_large_oblique_grid_is_no_disagreement() -> None:
    rng = np.random.default_rng(8)
    for angle in (*rng.uniform(-180, 180, 30), *(180 - 10.0 ** rng.uniform(-5, 1, 60))):
        affine = rotated(base_affine(), float(angle), float(rng.choice([0, 0.01, 30])))
        header = _header(affine, affine, (512, 512, 600))
        found = world_affine(header, choice="refuse", assume_orientation=None, where="a.nii")
        np.testing.assert_allclose(found, affine, atol=1e-5)


@pytest.mark.parametrize("first", [-0.8, 0.8])
@pytest.mark.parametrize("angle", [0, 1, 20])
@pytest.mark.parametrize("cosine", [3e-5, 6e-5, 9e-5])
def test_n03_shear_that_is_accepted_is_no_disagreement(first: float, angle: float, cosine: float) -> None:
    """A qform has no shear, so that both forms of an sform sheared by rounding differ at the corners."""
    shear = np.eye(4)
    shear[0, 1] = shear[1, 2] = cosine
    affine = rotated(np.diag([first, first, 0.8, 1.0]), angle, 0) @ shear
    found = world_affine(
        _header(affine, affine, (512, 512, 300)), choice="refuse", assume_orientation=None, where="a.nii"
    )
    np.testing.assert_allclose(found, affine, atol=1e-5)
    moved = affine.copy()
    moved[0, 3] += 1
    with refused("nifti-qs-disagree"):
        header = _header(moved, affine, (512, 512, 300))
        world_affine(header, choice="refuse", assume_orientation=None, where="a.nii")


@pytest.mark.parametrize("angle", [0.01, 1.0])
def test_n01_small_rotation_of_a_large_grid_is_seen(angle: float) -> None:
    for first in (0, 20, 90):
        affine = rotated(base_affine(), first, 15)
        header = _header(rotated(affine, angle, 0), affine, (512, 512, 600))
        with refused("nifti-qs-disagree"):
            world_affine(header, choice="refuse", assume_orientation=None, where="a.nii")


@pytest.mark.hazard("N4", "silent accepts")
def test_n04_shear(tmp_path: Path) -> None:
    affine = base_affine()
    affine[1, 2] = 0.6
    with refused("nifti-shear", "resample", "0.2873"):
        read_nifti(save(tmp_path / "a.nii", _sform(affine)))


@pytest.mark.hazard("N5", "silent accepts")
@pytest.mark.parametrize(
    ("pixdim", "code"),
    [
        ((1.0, 1.0, 1.0), "nifti-pixdim-disagree"),
        ((0.5, 0.5, 5.0), "nifti-pixdim-disagree"),
        ((1.5, 1.0, 2.02), "nifti-pixdim-disagree"),
        ((0.0, 0.0, 0.0), "nifti-bad-pixdim"),
        ((float("nan"), 1.0, 2.0), "nifti-bad-pixdim"),
        ((-1.5, 1.0, 2.0), "nifti-bad-pixdim"),
    ],
)
def test_n05_pixdim_against_sform(tmp_path: Path, pixdim: tuple[float, ...], code: str) -> None:
    path = save(tmp_path / "a.nii", patched(_sform(base_affine()), 80, "3f", *pixdim))
    with refused(code):
        read_nifti(path)
    np.testing.assert_array_equal(read_nifti(path, affine_choice="sform").affine, base_affine())


def test_n05_origin_out_of_this_world(tmp_path: Path) -> None:
    far = base_affine()
    far[1, 3] = 2e6
    with refused("nifti-bad-origin"):
        read_nifti(save(tmp_path / "a.nii", _sform(far)))


@pytest.mark.parametrize(("unit", "mm"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (2 | 8, 1.0)])
def test_n06_units(tmp_path: Path, figure: Figure, unit: int, mm: float) -> None:
    stored = base_affine()
    stored[:3] /= mm
    raw = patched(nifti_bytes(qform=(stored, 1), sform=(stored, 1)), 123, "B", unit)
    volume = read_nifti(save(tmp_path / "a.nii", raw))
    np.testing.assert_allclose(volume.affine, base_affine(), rtol=1e-6)
    off = max(abs(found / true - 1) for found, true in zip(volume.spacing, (1.5, 1.0, 2.0), strict=True))
    figure("N6", "largest relative error of the spacing", off, limit=1e-6)
    assert off <= 1e-6


def test_n06_unknown_unit(tmp_path: Path) -> None:
    with refused("nifti-unit"):
        read_nifti(save(tmp_path / "a.nii", patched(nifti_bytes(), 123, "B", 5)))


def test_n06_unit_taken_for_another(tmp_path: Path) -> None:
    with refused("nifti-bad-spacing", "correct the spacing or the unit"):
        read_nifti(save(tmp_path / "a.nii", patched(nifti_bytes(), 123, "B", 1)))
