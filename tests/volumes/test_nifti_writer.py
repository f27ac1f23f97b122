"""The writer: values, place, a clean header, and nothing at the final name when something fails."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from sparseg.errors import LabelError, SparsegError, VolumeError
from sparseg.volumes import atomic, nifti_writer
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume


def _affines() -> dict[str, np.ndarray]:
    plain = np.diag([1.5, 0.9765625, 2.0, 1.0])
    plain[:3, 3] = (-249.51171875, 61.5, -804.5)
    angle = np.radians(25)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    sheared = plain.copy()
    sheared[1, 2] = 0.6
    return {
        "RAS": plain,
        "LAS": plain @ np.diag([-1, 1, 1, 1]),
        "LPS": plain @ np.diag([-1, -1, 1, 1]),
        "oblique": turn @ plain,
        "permuted": plain[:, [2, 0, 1, 3]],
        "sheared": sheared,
    }


def _labels() -> np.ndarray:
    return make_phantom((9, 8, 7))[1].array[0].astype(np.uint8)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", [name for name in _affines() if name != "sheared"])
def test_labels_and_place_survive(tmp_path: Path, name: str, suffix: str) -> None:
    affine, labels, path = _affines()[name], _labels(), tmp_path / f"a{suffix}"
    write_label_map(path, labels, affine)
    back = read_labels(path)
    np.testing.assert_array_equal(back.array[0], labels)
    np.testing.assert_allclose(back.affine, affine, rtol=1e-6, atol=1e-6)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["RAS", "LPS", "oblique"])
def test_other_readers_see_the_same(tmp_path: Path, name: str) -> None:
    affine, labels = _affines()[name], _labels()
    write_label_map(tmp_path / "a.nii.gz", labels, affine)
    image = nib.load(tmp_path / "a.nii.gz")
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-4)
    itk = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).transpose(2, 1, 0), labels)
    corner = np.array(itk.TransformIndexToPhysicalPoint((8, 7, 6))) * (-1, -1, 1)
    np.testing.assert_allclose(corner, (affine @ [8, 7, 6, 1])[:3], atol=1e-3)


def test_sheared_grid_gets_no_qform(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii", _labels(), _affines()["sheared"])
    header = nib.load(tmp_path / "a.nii").header
    assert int(header["qform_code"]) == 0
    np.testing.assert_allclose(header.get_sform(), _affines()["sheared"], rtol=1e-6)


def _shear(cosine: float) -> np.ndarray:
    affine = np.diag([0.8, 0.8, 0.8, 1.0])
    affine[0, 1] = 0.8 * cosine
    return affine


def _turned_lps(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.diag([1.0, 1.0, 0.8, 1.0])
    affine[:2, :2] = np.array([[cos, -sin], [sin, cos]]) * -0.8
    return affine


@pytest.mark.parametrize(
    ("affine", "code"),
    [
        (np.diag([-0.8, -0.8, 0.8, 1.0]), 1),
        (_shear(1e-6), 1),
        (_shear(9e-5), 0),
        (_turned_lps(0.03), 0),
        (_turned_lps(20), 1),
    ],
)
def test_a_qform_that_would_say_something_else_is_left_out(
    tmp_path: Path, affine: np.ndarray, code: int
) -> None:
    """Without shear and in float32, a quaternion may miss the far corner by more than the reader allows."""
    write_label_map(tmp_path / "a.nii", np.zeros((300, 300, 12), np.uint8), affine)
    np.testing.assert_allclose(read_labels(tmp_path / "a.nii").affine, affine, rtol=1e-6, atol=1e-6)
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (code, 1)
    np.testing.assert_allclose(header.get_zooms(), 0.8, rtol=1e-6)


def test_equal_content_gives_equal_bytes_without_name_or_time(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "other name.nii.gz"):
        write_label_map(tmp_path / name, _labels(), _affines()["RAS"])
    first, second = (path.read_bytes() for path in tmp_path.iterdir())
    assert first == second
    assert first[3] == 0
    assert first[4:8] == bytes(4)


def test_memory_order_does_not_matter(tmp_path: Path) -> None:
    labels = _labels()
    write_label_map(tmp_path / "c.nii", labels, np.eye(4))
    write_label_map(tmp_path / "f.nii", np.asfortranarray(labels), np.eye(4))
    write_label_map(tmp_path / "n.nii", labels[::-1][::-1], np.eye(4))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_header_text_fields_are_empty(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii", _labels(), np.eye(4))
    raw = (tmp_path / "a.nii").read_bytes()
    for start, stop in ((4, 38), (148, 252), (328, 344)):
        assert raw[start:stop] == bytes(stop - start)


def test_label_names_are_an_extension(tmp_path: Path) -> None:
    names = {1: "Leber", 2: 'a "quoted" <name>'}
    write_label_map(tmp_path / "a.nii.gz", _labels(), np.eye(4), label_names=names)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.nii.gz").array[0], _labels())
    extension = nib.load(tmp_path / "a.nii.gz").header.extensions[0]
    assert extension.get_code() == 6
    stored = json.loads(extension.get_content().rstrip(b"\0"))["labels"]
    assert {int(key): value for key, value in stored.items()} == names


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_largest_ids(tmp_path: Path, dtype: type) -> None:
    labels = np.zeros((3, 3, 3), dtype=dtype)
    labels[1, 2, 0] = np.iinfo(dtype).max
    write_label_map(tmp_path / "a.nii.gz", labels, np.eye(4))
    assert read_labels(tmp_path / "a.nii.gz").array[0, 1, 2, 0] == np.iinfo(dtype).max


@pytest.mark.parametrize(
    "labels", [np.zeros((3, 3, 3)), np.zeros((3, 3, 3), np.int64), np.zeros((3, 3), np.uint8)]
)
def test_other_label_types_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    with pytest.raises(LabelError, match="uint8 or uint16"):
        write_label_map(tmp_path / "a.nii.gz", labels, np.eye(4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_image_survives(tmp_path: Path, dtype: type) -> None:
    image, _ = make_phantom((9, 8, 7))
    stacked = np.concatenate([image.array, image.array * -2]).astype(dtype)
    write_image(tmp_path / "a.nii.gz", Volume(stacked, _affines()["oblique"]))
    back = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.array, stacked.astype(np.float32))
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == dtype


def test_image_with_nan_is_refused(tmp_path: Path) -> None:
    array = np.zeros((1, 3, 3, 3), dtype=np.float32)
    array[0, 1, 1, 1] = np.nan
    with pytest.raises(VolumeError, match="finite"):
        write_image(tmp_path / "a.nii", Volume(array, np.eye(4)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("a.mha", "nifti-suffix"),
        ("none/a.nii.gz", "write-failed"),
        ("dir.nii", "write-failed"),
        ("file/a.nii", "write-failed"),
        ("a\0.nii", "nifti-suffix"),
    ],
)
def test_bad_targets(tmp_path: Path, target: str, code: str) -> None:
    (tmp_path / "dir.nii").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError) as info:
        write_label_map(tmp_path / target, _labels(), np.eye(4))
    assert info.value.code == code
    assert sorted(item.name for item in tmp_path.iterdir()) == ["dir.nii", "file"]


def test_p4_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii.gz"
    write_label_map(path, _labels(), np.eye(4))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(VolumeError, match="No space left on device"):
        write_label_map(path, _labels() * 0, np.eye(4))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nii.gz"]  # noqa: PTH208


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_p4_silently_damaged_write_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    true_write = nifti_writer._write_stream

    def damaged(file: object, **parts: object) -> None:
        array = parts["array"].copy()  # type: ignore[attr-defined]
        array[3, 3, 3] += 1
        true_write(file, **{**parts, "array": array})  # type: ignore[arg-type]

    monkeypatch.setattr(nifti_writer, "_write_stream", damaged)
    with pytest.raises(SparsegError) as info:
        write_label_map(tmp_path / f"a{suffix}", _labels(), np.eye(4))
    assert info.value.code == "write-verify"
    assert not list(tmp_path.iterdir())


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nifti_writer, "_verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_label_map(tmp_path / "a.nii.gz", _labels(), np.eye(4))
    assert not list(tmp_path.iterdir())


def test_x4_nothing_of_the_input_header_reaches_the_output(tmp_path: Path) -> None:
    image = nib.Nifti1Image(_labels(), np.eye(4))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b"ZZPHI"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"ZZPHI"))
    nib.save(image, tmp_path / "in.nii.gz")
    labels = read_labels(tmp_path / "in.nii.gz")
    write_label_map(tmp_path / "out.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    assert b"ZZPHI" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())
