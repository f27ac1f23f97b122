"""Structure sets and segmentations become label maps on the grid of their image, in millimetres."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from hazards.dicom_faults import AXIAL, COLUMNS, ROWS, SLICES, save_series
from sparseg.errors import GeometryError, LabelError, SparsegError, VolumeError
from sparseg.volumes.dicom import read_dicom_series
from sparseg.volumes.dicom_labels import dicom_label_names, is_dicom_file, read_dicom_label_map
from sparseg.volumes.dicom_rtstruct import fill_contours
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.volume import Volume
from volumes.dicom_label_files import make_rtstruct, make_seg, make_series, save

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
TILTED = (0.9396926, 0.3420201, 0.0, -0.3368241, 0.9254166, 0.1736482)


def grid(cosines: tuple[float, ...] = AXIAL, shape: tuple[int, int, int] = (40, 30, 9)) -> Volume:
    """An empty image as `read_dicom_series` would place it; not square, not isotropic."""
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * 0.7, column * 0.9, np.cross(row, column) * 2.5
    affine[:3, 3] = (-30.0, 12.0, 40.0)
    affine[:2] *= -1
    return Volume(np.zeros((1, *shape), np.float32), affine)


def lps(image: Volume, ijk: np.ndarray) -> np.ndarray:
    return voxel_to_world(image.affine, ijk) * [-1, -1, 1]


def ellipse(image: Volume, k: float, center: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    i, j = center[0] + radii[0] * np.cos(angle), center[1] + radii[1] * np.sin(angle)
    return lps(image, np.stack([i, j, np.full_like(i, k)], axis=1))


def rectangle(image: Volume, k: float, i: Sequence[float], j: Sequence[float]) -> np.ndarray:
    return lps(image, np.array([[i[0], j[0], k], [i[1], j[0], k], [i[1], j[1], k], [i[0], j[1], k]]))


@pytest.mark.parametrize("cosines", [AXIAL, SAGITTAL, CORONAL, TILTED])
def test_an_ellipsoid_has_its_volume_and_place(cosines: tuple[float, ...]) -> None:
    image = grid(cosines)
    center, radii = np.array([21.0, 14.0, 4.0]), np.array([14.0, 11.0, 4.4])
    contours = []
    for k in range(9):
        scale = 1 - ((k - center[2]) / radii[2]) ** 2
        contours.append(ellipse(image, k, center, radii[:2] * np.sqrt(scale)))
    mask = fill_contours(contours, image, where="")
    expected = ((np.indices(image.shape).T - center) ** 2 / radii**2).sum(-1).T <= 1
    assert np.count_nonzero(mask ^ expected) <= 0.01 * expected.sum()
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * radii.prod(), rel=0.03)


def test_a_disc_with_a_hole() -> None:
    image = grid()
    contours = [ellipse(image, 3, (20, 15), (13, 13)), ellipse(image, 3, (20, 15), (6, 6))]
    mask = fill_contours(contours, image, where="")
    assert not mask[20, 15, 3]
    assert mask[20, 25, 3]
    assert mask[:, :, 3].sum() == pytest.approx(np.pi * (13**2 - 6**2), rel=0.03)
    assert not np.delete(mask, 3, axis=2).any()


def test_a_common_edge_belongs_to_one_side_only() -> None:
    image = grid()
    left = fill_contours([rectangle(image, 2, (4, 10), (5, 9))], image, where="")
    right = fill_contours([rectangle(image, 2, (10, 15), (5, 9))], image, where="")
    above = fill_contours([rectangle(image, 2, (4, 15), (9, 12))], image, where="")
    expected = np.zeros(image.shape, bool)
    expected[4:10, 5:9, 2] = True
    np.testing.assert_array_equal(left, expected)
    assert not (left & right).any()
    assert not ((left | right) & above).any()
    assert (left | right | above).sum() == 11 * 7


def test_array_axes_may_have_any_order() -> None:
    image = grid()
    contours = [ellipse(image, k, (20, 15), (9, 7)) for k in (2, 3)]
    turned = Volume(image.array.transpose(0, 3, 1, 2), image.affine[:, [2, 0, 1, 3]])
    np.testing.assert_array_equal(
        fill_contours(contours, turned, where=""),
        fill_contours(contours, image, where="").transpose(2, 0, 1),
    )


def test_contours_between_slices_go_to_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    image = grid()
    contours = [rectangle(image, k, (4.5, 10.5), (5.5, 9.5)) for k in (2.3, 2.6, 3.1, 6)]
    with caplog.at_level(logging.WARNING, "sparseg"):
        mask = fill_contours(contours, image, where="x")
    assert np.flatnonzero(mask.any(axis=(0, 1))).tolist() == [2, 3, 6]
    assert mask.sum() == 3 * 6 * 4
    assert "1 contours between the slices left out" in caplog.text
    assert "2 slices between the first and the last have no contour" in caplog.text


@pytest.mark.parametrize(
    ("points", "code"),
    [
        ([[4, 4, 9], [9, 4, 9], [9, 9, 9]], "contour-outside"),
        ([[4, 4, 3], [9, 4, 3.4], [9, 9, 2]], "contour-plane"),
        ([[4, 4, -2], [9, 4, -2], [9, 9, -2]], "contour-outside"),
        ([[4, 4, 3], [45, 4, 3], [9, 9, 3]], "contour-outside"),
    ],
)
def test_contours_that_do_not_fit(points: list[list[float]], code: str) -> None:
    image = grid()
    with pytest.raises(GeometryError) as info:
        fill_contours([lps(image, np.array(points))], image, where="x")
    assert info.value.code == code


@pytest.fixture
def series(tmp_path: Path) -> tuple[Volume, list[Dataset]]:
    slices = make_series(cosines=TILTED)
    return read_dicom_series(save_series(tmp_path / "ct", slices)), slices


def test_structure_set_of_a_series(tmp_path: Path, series: tuple[Volume, list[Dataset]]) -> None:
    image, slices = series
    structures = {
        "kidney": [rectangle(image, k, (0.5, 4.5), (1.5, 5.5)) for k in (1, 2)],
        "liver ": [rectangle(image, k, (5.5, 9.5), (1.5, 5.5)) for k in (2, 3)],
        "empty": [],
    }
    path = save(tmp_path / "rs.dcm", make_rtstruct(slices[0], structures))
    assert is_dicom_file(path)
    assert dicom_label_names(path) == ("kidney", "liver")
    labels = read_dicom_label_map(path, image, {"kidney": 2, "liver": 1})
    expected = np.zeros((1, COLUMNS, ROWS, SLICES), np.int32)
    expected[0, 1:5, 2:6, 1:3] = 2
    expected[0, 6:10, 2:6, 2:4] = 1
    np.testing.assert_array_equal(labels.array, expected)
    assert labels.array.dtype == np.int32
    np.testing.assert_array_equal(labels.affine, image.affine)
    np.testing.assert_array_equal(read_dicom_label_map(path, image, {"liver": 1}).array, expected == 1)


def test_points_and_lines_are_no_structures(tmp_path: Path, series: tuple[Volume, list[Dataset]]) -> None:
    image, slices = series
    path = tmp_path / "rs.dcm"
    structures = {"a": [rectangle(image, 1, (0.5, 4.5), (1.5, 5.5))]}
    save(path, make_rtstruct(slices[0], structures, kind="OPEN_PLANAR"))
    assert dicom_label_names(path) == ()
    with pytest.raises(LabelError, match="no structure with an area"):
        read_dicom_label_map(path, image, {"a": 1})


def test_incomplete_contour(tmp_path: Path, series: tuple[Volume, list[Dataset]]) -> None:
    image, slices = series
    dataset = make_rtstruct(slices[0], {"a": [rectangle(image, 1, (0.5, 4.5), (1.5, 5.5))]})
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData.pop()
    path = save(tmp_path / "rs.dcm", dataset)
    with pytest.raises(VolumeError) as info:
        dicom_label_names(path)
    assert info.value.code == "contour-points"


def test_no_cut_of_a_structure_set_is_read_as_good(
    tmp_path: Path, series: tuple[Volume, list[Dataset]]
) -> None:
    image, slices = series
    structures = {"a": [rectangle(image, k, (0.5, 4.5), (1.5, 5.5)) for k in (1, 2)]}
    structures["b"] = [rectangle(image, 3, (0.5, 4.5), (1.5, 5.5))]
    path = save(tmp_path / "rs.dcm", make_rtstruct(slices[0], structures))
    raw, ids = path.read_bytes(), {"a": 1, "b": 2}
    good = read_dicom_label_map(path, image, ids).array
    for size in range(700, len(raw)):
        path.write_bytes(raw[:size])
        try:
            labels = read_dicom_label_map(path, image, ids)
        except SparsegError:
            continue
        np.testing.assert_array_equal(labels.array, good, err_msg=f"cut to {size} bytes")


def test_overlap(tmp_path: Path, series: tuple[Volume, list[Dataset]]) -> None:
    image, slices = series
    structures = {
        "a": [rectangle(image, k, (0.5, 5.5), (0.5, 4.5)) for k in (1, 2, 3)],
        "b": [rectangle(image, 1, (4.5, 9.5), (3.5, 7.5))]
        + [rectangle(image, k, (5.5, 9.5), (3.5, 7.5)) for k in (2, 3)],
        "c": [rectangle(image, k, (3.5, 5.5), (0.5, 4.5)) for k in (1, 2, 3)],
    }
    path = save(tmp_path / "rs.dcm", make_rtstruct(slices[0], structures))
    # a (60 voxels) and b (52) share one voxel, which goes to the higher id whatever the order in the file.
    for ids in ({"a": 1, "b": 2}, {"a": 2, "b": 1}):
        labels = read_dicom_label_map(path, image, ids).array[0]
        assert labels[5, 4, 1] == 2
        assert np.bincount(labels.ravel())[1:].tolist() == ([59, 52] if ids["a"] == 1 else [51, 60])
    with pytest.raises(LabelError, match=r"c shares 24 voxels \(100.0%") as info:
        read_dicom_label_map(path, image, {"a": 1, "c": 3})
    assert info.value.code == "label-overlap"
    united = read_dicom_label_map(path, image, {"a": 1, "b": 1}).array
    assert np.count_nonzero(united) == 60 + 52 - 1


def masks() -> np.ndarray:
    """Two segments `[slices, rows, columns, 2]` that leave slices 0, 2, 4, 5 and 7 empty."""
    array = np.zeros((SLICES, ROWS, COLUMNS, 2), np.uint8)
    array[[1, 3, 6], 2:6, 3:9, 0] = 1
    array[[1, 3], 6:8, 1:5, 1] = 1
    return array


def expected_labels() -> np.ndarray:
    a, b = np.moveaxis(masks(), 3, 0).astype(np.int32).transpose(0, 3, 2, 1)
    return a + 2 * b


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("cosines", [AXIAL, SAGITTAL, TILTED])
def test_segmentation(tmp_path: Path, kind: str, cosines: tuple[float, ...]) -> None:
    slices = make_series(cosines=cosines)
    image = read_dicom_series(save_series(tmp_path / "ct", slices))
    pixels = masks()
    if kind == "LABELMAP":
        pixels = pixels[..., 0] + 2 * pixels[..., 1]
    elif kind == "FRACTIONAL":
        pixels = np.where(pixels, 0.6, 0.4)
    path = save(tmp_path / "seg.dcm", make_seg(slices, pixels, ["liver", "spleen"], kind=kind))
    assert dicom_label_names(path) == ("liver", "spleen")
    labels = read_dicom_label_map(path, image, {"liver": 1, "spleen": 2})
    np.testing.assert_array_equal(labels.array[0], expected_labels())
    turned = Volume(image.array[:, ::-1].transpose(0, 3, 1, 2), image.affine.copy())
    turned.affine[:3, 3] += (COLUMNS - 1) * image.affine[:3, 0]
    turned.affine[:3, 0] *= -1
    turned = Volume(turned.array, turned.affine[:, [2, 0, 1, 3]])
    labels = read_dicom_label_map(path, turned, {"spleen": 2})
    expected = np.where(expected_labels() == 2, 2, 0)[::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(labels.array[0], expected)


def moved(image: Volume, code: str) -> Volume:
    affine = image.affine.copy()
    if code == "grid-position":
        affine[:3, 3] += 0.3 * affine[:3, 2]
    elif code == "grid-spacing":
        affine[:3, 0] *= 1.01
    elif code == "grid-orientation":
        affine[:3, 0] *= 2
    else:
        affine[:3, 3] += 3 * affine[:3, 2]
    return Volume(image.array, affine)


@pytest.mark.parametrize("code", ["grid-position", "grid-spacing", "grid-orientation", "grid-shape"])
def test_segmentation_of_another_grid(
    tmp_path: Path, series: tuple[Volume, list[Dataset]], code: str
) -> None:
    image, slices = series
    path = save(tmp_path / "seg.dcm", make_seg(slices, masks(), ["liver", "spleen"]))
    with pytest.raises(GeometryError) as info:
        read_dicom_label_map(path, moved(image, code), {"liver": 1})
    assert info.value.code == code


def test_damaged_segmentation_and_other_files(tmp_path: Path, series: tuple[Volume, list[Dataset]]) -> None:
    image, slices = series
    path = save(tmp_path / "seg.dcm", make_seg(slices, masks(), ["liver", "spleen"]))
    raw = path.read_bytes()
    for cut in (20, 200, 1000, len(raw) // 2):
        path.write_bytes(raw[:-cut])
        with pytest.raises(SparsegError):
            read_dicom_label_map(path, image, {"liver": 1})
    with pytest.raises(VolumeError, match="modality CT"):
        read_dicom_label_map(tmp_path / "ct" / "000", image, {"liver": 1})
    with pytest.raises(LabelError, match="liver, spleen"):
        read_dicom_label_map(save(path, make_seg(slices, masks(), ["liver", "spleen"])), image, {"lung": 1})
    (tmp_path / "a.nii").write_bytes(bytes(400))
    assert not is_dicom_file(tmp_path / "a.nii")
    assert not is_dicom_file(tmp_path / "none")
    assert not is_dicom_file(tmp_path)
