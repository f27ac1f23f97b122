"""One entry for all kinds of input, safe case names, and phantoms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hazards.dicom_faults import expected_affine, make_slices, save_series
from sparseg.errors import VolumeError
from sparseg.volumes.io import case_name, is_dicom_folder, read_labels, read_volume
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom


def test_file_and_folder(tmp_path: Path) -> None:
    image, _ = make_phantom((6, 5, 4))
    write_image(tmp_path / "a.nii.gz", image)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, image.array)
    folder = save_series(tmp_path / "s", make_slices())
    assert is_dicom_folder(folder)
    assert not is_dicom_folder(tmp_path)
    assert not is_dicom_folder(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(folder).affine, expected_affine(), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("none.nii.gz", "file-missing", "check the path"),
        ("none.mha", "file-missing", "check the path"),
        ("a.zip", "unsupported-format", "unpack"),
        ("a.dcm", "unsupported-format", "folder"),
        ("a.mha", "itk-not-metaimage", "header"),
        ("a.mnc", "unsupported-format", ".nii.gz, .nrrd or .mha"),
        ("empty", "dicom-none", "series"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, code: str, word: str) -> None:
    (tmp_path / "empty").mkdir()
    if name.startswith("a."):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(VolumeError, match=word) as info:
        read_volume(tmp_path / name)
    assert info.value.code == code


def test_labels_are_files(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="a folder"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/liver_01.nii.gz", "liver_01"),
        ("a.b.NII", "a.b"),
        ("/data/series 3/", "series 3"),
        ("脳_ü.nii.gz", "脳_ü"),
        ("-rf.nii", "rf"),
        ("...", "case"),
        (".hidden.nii.gz", "hidden"),
        ("a\nb\x00c<img>.nii.gz", "a_b_c_img_"),
        ("..\\..\\x.nii", "_.._x"),
        ("../x.nii.gz", "x"),
        (".nii.gz", "case"),
    ],
)
def test_p8_case_names_are_safe(path: str, name: str) -> None:
    assert case_name(path) == name


@pytest.mark.parametrize("letter", ["a", "é", "脳", "🧠", "-", "."])
def test_p8_long_names_fit_a_file_system(letter: str) -> None:
    name = case_name(letter * 250 + ".nii.gz")
    assert 1 <= len(name) <= 100
    assert len(name.encode()) <= 200
    assert name[0] not in "-."


def test_nifti_needs_no_dicom_library() -> None:
    script = (
        "import sys, sparseg.volumes.io; print(sorted({'pydicom', 'SimpleITK', 'torch'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_phantom_is_seeded_and_has_no_symmetry() -> None:
    image, labels = make_phantom((20, 20, 20), num_classes=4, seed=3)
    np.testing.assert_array_equal(image.array, make_phantom((20, 20, 20), num_classes=4, seed=3)[0].array)
    assert not np.array_equal(image.array, make_phantom((20, 20, 20), num_classes=4, seed=4)[0].array)
    assert set(np.unique(labels.array)) == {0, 1, 2, 3}
    for label in range(4):
        assert image.array[labels.array == label].mean() == pytest.approx(100 * label, abs=2)
    changed = [
        np.flip(np.transpose(labels.array[0], order), axes)
        for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0), (2, 0, 1))
        for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    ]
    assert sum(np.array_equal(item, labels.array[0]) for item in changed) == 1
