"""Geometry in millimetres against hand-made affines and nibabel."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from sparseg.errors import GeometryError
from sparseg.volumes.geometry import (
    affine_from_codes,
    axis_codes,
    corner_distance_mm,
    is_orthogonal,
    orthogonality_error,
    require_same_grid,
    voxel_to_world,
)
from sparseg.volumes.nifti_affine import world_affine
from sparseg.volumes.nifti_header import parse_header
from sparseg.volumes.volume import Volume

SHAPE = (12, 14, 10)


def _affine(spacing: tuple[float, float, float] = (1.5, 1.0, 2.0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20.0, -15.0, 310.0)
    return affine


def _turn(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    return turn


def _volume(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE, source: str = "") -> Volume:
    return Volume(np.zeros((1, *shape), dtype=np.float32), affine, source)


ALL_CODES = ["".join(letters) for order in permutations(("RL", "AP", "SI")) for letters in product(*order)]


@pytest.mark.parametrize("codes", ALL_CODES)
def test_axis_codes_of_all_48_orders_agree_with_nibabel(codes: str) -> None:
    affine = affine_from_codes(codes, (1.5, 1.0, 2.0))
    for turned in (affine, _turn(20) @ affine):
        assert axis_codes(turned) == codes == "".join(nib.aff2axcodes(turned))
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (1.5, 1.0, 2.0))


def test_voxel_to_world() -> None:
    flipped = _affine() @ np.diag([-1, 1, 1, 1])
    np.testing.assert_allclose(voxel_to_world(flipped, [2, 3, 4.5]), (-23, -12, 319))
    grid = np.random.default_rng(0).normal(size=(3, 5, 3))
    oblique = _turn(30) @ _affine()
    expected = np.einsum("ij,abj->abi", oblique[:3, :3], grid) + oblique[:3, 3]
    np.testing.assert_allclose(voxel_to_world(oblique, grid), expected)


def test_orthogonality() -> None:
    assert orthogonality_error(_turn(33) @ _affine()) < 1e-12
    sheared = _affine()
    sheared[1, 2] = 0.6
    assert orthogonality_error(sheared) == pytest.approx(0.6 / np.hypot(2, 0.6))
    assert not is_orthogonal(sheared)
    assert is_orthogonal((_turn(33) @ _affine()).astype(np.float32))


def test_corner_distance() -> None:
    assert corner_distance_mm(_affine(), _affine(), SHAPE) == 0
    moved = _affine()
    moved[:3, 3] += (3, 4, 0)
    assert corner_distance_mm(_affine(), moved, SHAPE) == pytest.approx(5)
    wider = _affine((1.6, 1.0, 2.0))
    assert corner_distance_mm(_affine(), wider, SHAPE) == pytest.approx(0.1 * 11.5)


@pytest.mark.parametrize("angle", [0, 20])
def test_same_grid_accepts_rounding(angle: float) -> None:
    affine = _turn(angle) @ _affine((0.9765625, 0.9765625, 1.25))
    require_same_grid(_volume(affine), _volume(affine.astype(np.float32)))
    nudged = affine.copy()
    nudged[0, 3] += 0.005
    require_same_grid(_volume(affine), _volume(nudged))


@pytest.mark.parametrize("angle", [0, 20])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda a: a @ np.diag([1.01, 1, 1, 1]), "grid-spacing"),
        (lambda a: a @ np.diag([1, 1, 1.002, 1]), "grid-spacing"),
        (lambda a: a @ np.diag([-1, 1, 1, 1]), "grid-orientation"),
        (lambda a: a[:, [1, 0, 2, 3]], "grid-orientation"),
        (lambda a: a + np.outer([0, 1, 0, 0], [0, 0, 0, 10.0]), "grid-position"),
        (lambda a: a + np.outer([1, 0, 0, 0], [0, 0, 0, 0.05]), "grid-position"),
        (lambda a: _turn(0.5) @ a, "grid-position"),
    ],
)
def test_same_grid_refuses_real_differences(angle: float, change: object, code: str) -> None:
    affine = _turn(angle) @ _affine()
    with pytest.raises(GeometryError) as info:
        require_same_grid(_volume(affine, source="ct.nii"), _volume(change(affine), source="seg.nii"))  # type: ignore[operator]
    assert info.value.code == code
    assert "ct.nii" in str(info.value)
    assert "seg.nii" in str(info.value)
    assert info.value.remedy


def _tilted_lps(about_x: float, about_z: float = 0.0) -> np.ndarray:
    cos, sin = np.cos(np.radians(about_x)), np.sin(np.radians(about_x))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ np.diag([-0.7, -0.7, 0.7])
    affine[:3, 3] = (90.0, 60.0, -400.0)
    return _turn(about_z) @ affine


def _large(affine: np.ndarray, shape: tuple[int, int, int] = (512, 512, 400)) -> Volume:
    return Volume(np.broadcast_to(np.uint8(0), (1, *shape)), affine)


def _from_qform(affine: np.ndarray) -> np.ndarray:
    """Return the affine as it is read from a file that has it as a qform only."""
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_qform(affine, code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    parsed = parse_header(header.binaryblock + bytes(4), where="a.nii")
    return world_affine(parsed, choice="refuse", assume_orientation=None, where="a.nii")


@pytest.mark.parametrize("about_x", [0, 0.01, 0.3, 1, 2.5, 7, 20, 45, 90, 179])
@pytest.mark.parametrize("about_z", [0, 0.01, 0.03, 0.1, 1, 30])
@pytest.mark.parametrize("mirror", [1, -1])
def test_same_grid_accepts_a_float32_quaternion(about_x: float, about_z: float, mirror: int) -> None:
    affine = _tilted_lps(about_x, about_z) @ np.diag([1, 1, mirror, 1])
    require_same_grid(_large(affine), _large(_from_qform(affine)))
    require_same_grid(_large(_from_qform(affine)), _large(affine))


def test_same_grid_accepts_a_qform_only_label_beside_a_tilted_image() -> None:
    affine, shape = _tilted_lps(1), (256, 256, 120)
    assert 0.1 * 0.7 < corner_distance_mm(affine, _from_qform(affine), shape) < 0.15 * 0.7
    require_same_grid(_large(affine, shape), _large(_from_qform(affine), shape))


@pytest.mark.parametrize("about_z", [20, 180.3])
def test_same_grid_accepts_a_shear_that_a_quaternion_cannot_hold(about_z: float) -> None:
    affine = _turn(about_z) @ _affine((0.8, 0.8, 0.8))
    affine[:3, 1] += 9e-5 * affine[:3, 0]
    require_same_grid(_large(affine), _large(_from_qform(affine)))
    require_same_grid(_large(_from_qform(affine)), _large(affine))


@pytest.mark.parametrize("degrees", [0, 1])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda a: a @ np.diag([1.01, 1, 1, 1]), "grid-spacing"),
        (lambda a: a @ np.diag([1.0008, 1, 1, 1]), "grid-position"),
        (lambda a: a @ np.diag([1, 1, -1, 1]), "grid-orientation"),
        (lambda a: a + np.outer([1, 0, 0, 0], [0, 0, 0, 0.05]), "grid-position"),
        (lambda a: a @ _turn(0.1), "grid-position"),
        (lambda a: a + np.outer([0, 0, 0.002, 0], [0, 1, 0, 0]), "grid-position"),
    ],
)
def test_same_grid_is_no_looser_on_other_differences_near_180_degrees(
    degrees: float, change: object, code: str
) -> None:
    affine = _tilted_lps(degrees)
    with pytest.raises(GeometryError) as info:
        require_same_grid(_large(affine), _large(change(affine)))  # type: ignore[operator]
    assert info.value.code == code


def test_same_grid_refuses_another_shape_and_one_slice_of_other_thickness() -> None:
    with pytest.raises(GeometryError, match=r"\(12, 14, 10\) and \(12, 14, 11\)"):
        require_same_grid(_volume(_affine()), _volume(_affine(), (12, 14, 11)))
    thicker = _affine((1.5, 1.0, 2.02))
    with pytest.raises(GeometryError, match=r"2\.02"):
        require_same_grid(_volume(_affine(), (12, 14, 1)), _volume(thicker, (12, 14, 1)))


def test_same_grid_near_45_degrees_is_no_false_alarm() -> None:
    # Two affines a rounding step on either side of 45 degrees have different axis codes and the same place.
    a, b = _turn(45 - 1e-7) @ _affine((1, 1, 1)), _turn(45 + 1e-7) @ _affine((1, 1, 1))
    require_same_grid(_volume(a), _volume(b))


def test_same_grid_tolerance_can_be_set() -> None:
    moved = _affine()
    moved[0, 3] += 0.4
    require_same_grid(_volume(_affine()), _volume(moved), tol_mm=0.5)
    with pytest.raises(GeometryError, match="prediction and truth"):
        require_same_grid(_volume(_affine()), _volume(moved), tol_mm=0.3, what="prediction and truth")
