"""Layouts by convention: nnU-Net raw, plain folders, one folder per case. No image is opened."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from sparseg.datasets import read
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.errors import DatasetError
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

NNUNET = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "liver": 1},
    "file_ending": ".nii.gz",
    "numTraining": 2,
    "overwrite_image_reader_writer": "SimpleITKIO",
}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def describe(root: Path, **changes: object) -> Path:
    root.mkdir(exist_ok=True)
    content = {key: value for key, value in (NNUNET | changes).items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def problems(dataset: Dataset) -> list[tuple[str, str, str]]:
    return sorted((each.code, each.case, each.file) for each in dataset.problems)


def files(dataset: Dataset) -> dict[str, tuple[list[str], str | None]]:
    return {
        case.name: ([path.name for path in case.images], case.label and case.label.name)
        for case in dataset.cases
    }


def test_nnunet(tmp_path):
    touch(tmp_path, *(f"imagesTr/{n}_000{c}.nii.gz" for n in ("a_0001", "b") for c in (0, 1)))
    touch(tmp_path, "labelsTr/a_0001.nii.gz", "labelsTr/b.nii.gz", "imagesTr/._b_0000.nii.gz")
    touch(tmp_path, "imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz", "labelsTs/c.nii.gz")
    dataset = read_dataset(describe(tmp_path / "", name="Abdomen"))
    assert (dataset.layout, dataset.name, dataset.channels) == ("nnU-Net raw", "Abdomen", ("T1", "T2"))
    assert dataset.labels == {0: "background", 1: "liver"}
    assert files(dataset) == {
        "a_0001": (["a_0001_0000.nii.gz", "a_0001_0001.nii.gz"], "a_0001.nii.gz"),
        "b": (["b_0000.nii.gz", "b_0001.nii.gz"], "b.nii.gz"),
        "c": (["c_0000.nii.gz", "c_0001.nii.gz"], "c.nii.gz"),
    }
    assert [case.name for case in dataset.test] == ["c"]
    assert read_dataset(tmp_path / "dataset.json") == dataset


def test_nnunet_problems(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    touch(tmp_path, "imagesTr/b_0001.nii.gz", "labelsTr/b.nii.gz", "labelsTr/c.nii.gz")
    touch(tmp_path, "imagesTr/d_0000.nii.gz", "imagesTr/d_0001.nii.gz", "imagesTr/e.nii.gz")
    touch(tmp_path, "imagesTr/f_0000.nii.gz", "imagesTr/f_0002.nii.gz", "labelsTr/f.nii.gz")
    dataset = read_dataset(describe(tmp_path), strict=False)
    assert list(files(dataset)) == ["a"]
    assert problems(dataset) == [
        ("file-name", "", "imagesTr/e.nii.gz"),
        ("image-missing", "c", "labelsTr/c.nii.gz"),
        ("label-missing", "d", "imagesTr/d_0000.nii.gz"),
        ("modality-missing", "b", "imagesTr/b_0001.nii.gz"),
        ("modality-unknown", "f", "imagesTr/f_0002.nii.gz"),
    ]
    missing = next(each for each in dataset.problems if each.code == "modality-missing")
    assert "T1" in missing.message
    assert all(each.remedy and each.severity == "error" for each in dataset.problems)
    with pytest.raises(DatasetError, match="5 problem"):
        read_dataset(tmp_path)


def test_nnunet_cases_of_another_ending_are_problems(tmp_path):
    for name in ("a", "b"):
        touch(
            tmp_path,
            f"imagesTr/{name}_0000.nii.gz",
            f"imagesTr/{name}_0001.nii.gz",
            f"labelsTr/{name}.nii.gz",
        )
    touch(tmp_path, "imagesTr/c_0000.nii", "imagesTr/c_0001.nii", "labelsTr/c.nii", "imagesTs/t_0000.mha")
    touch(tmp_path, "labelsTr/a.nii", "imagesTr/b_0001.nrrd", "imagesTr/README.txt", "imagesTr/.x.nii")
    dataset = read_dataset(describe(tmp_path, numTraining=3), strict=False)
    assert list(files(dataset)) == ["a", "b"]
    assert problems(dataset) == [
        ("file-name", "c", "imagesTr/c_0000.nii"),
        ("file-name", "t", "imagesTs/t_0000.mha"),
    ]
    with pytest.raises(DatasetError, match=r"must end in \.nii\.gz, the file_ending; received c_0000\.nii;"):
        read_dataset(tmp_path)


def test_nnunet_regions_endings_and_version_1(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    root = describe(tmp_path / "r", labels=labels, regions_class_order=[1, 2], file_ending=".mha")
    touch(root, "imagesTr/a_0000.mha", "imagesTr/a_0001.mha", "labelsTr/a.mha")
    dataset = read_dataset(root)
    assert dataset.regions == {"whole": (1, 2), "core": (2,)}
    assert files(dataset) == {"a": (["a_0000.mha", "a_0001.mha"], "a.mha")}
    one = {"0": "CT"}
    old = describe(
        tmp_path / "v1",
        file_ending=None,
        channel_names=None,
        modality=one,
        labels={"0": "background", "1": "liver"},
        training=[{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    )
    touch(old, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    dataset = read_dataset(old)
    assert dataset.layout == "nnU-Net raw"
    assert files(dataset) == {"a": (["a_0000.nii.gz"], "a.nii.gz")}


def test_nnunet_mapping(tmp_path):
    touch(tmp_path, "far/t1.nii.gz", "far/t2.nii.gz", "far/seg.nii.gz")
    item = {"images": ["../far/t1.nii.gz", str(tmp_path / "far/t2.nii.gz")], "label": "../far/seg.nii.gz"}
    dataset = read_dataset(describe(tmp_path / "d", dataset={"a": item}))
    assert files(dataset) == {"a": (["t1.nii.gz", "t2.nii.gz"], "seg.nii.gz")}
    with pytest.raises(DatasetError, match="must have 'images' and 'label'"):
        read_dataset(describe(tmp_path / "d", dataset={"a": {"images": []}}))


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, "ignore-label", "ignore: 2"),
        ({"file_ending": ".png"}, "file-ending", "'.png'"),
        ({"file_ending": 3}, "file-ending", "3"),
        (
            {"labels": {"background": 0, "w": [1, 2], "c": 2}, "regions_class_order": [2, 1]},
            "region-order",
            "2, 1",
        ),
        (
            {"labels": {"background": 0, "w": [1, 2], "c": 2}, "regions_class_order": [1]},
            "region-order",
            "w, c",
        ),
        ({}, "folder-missing", "no labelsTr beside imagesTr"),
    ],
)
def test_nnunet_faults(tmp_path, changes, code, message):
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(describe(tmp_path, **changes))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.nii.gz", "labels/a.nii"),
        ("imagesTr/a.nii.gz", "labelsTr/a_seg.nii.gz"),
        ("IMG/a.nii", "Masks/a-label.nii"),
        ("ct/a_0000.nii.gz", "seg/a.nii.gz"),
        ("scans/a_0001.nii.gz", "gt/a_0001_gt.nii.gz"),
        ("img/img0001.nii.gz", "label/label0001.nii.gz"),
        ("volumes/volume-3.nii", "segmentations/segmentation-3.nii"),
        ("images/a_image.mha", "segmentation/seg_a.mha"),
        ("images/a.b.nii.gz", "ground_truth/a.b_mask.nii.gz"),
    ],
)
def test_two_folders_match_by_name(tmp_path, image, label):
    touch(tmp_path, image, label)
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.channels, dataset.labels) == ("two folders", ("image",), {})
    (case,) = dataset.training
    assert case.images == (tmp_path / image,)
    assert case.label == tmp_path / label


def test_two_folders_with_channels_tests_and_problems(tmp_path):
    for name in ("a", "b", "c"):
        touch(tmp_path, f"images/{name}_0000.nii.gz", f"images/{name}_0001.nii.gz")
    touch(tmp_path, "labels/a.nii.gz", "labels/b.nii.gz", "images/e_0000.nii.gz", "labels/e.nii.gz")
    touch(tmp_path, "labels/d.nii.gz", "imagesTs/x_0000.nii.gz", "imagesTs/x_0001.nii.gz")
    touch(tmp_path, "images/b_0002.nii.gz", "labels/a.nii")
    dataset = read_dataset(tmp_path, strict=False)
    assert dataset.channels == ("image 0", "image 1")
    assert files(dataset) == {
        "a": (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii"),
        "x": (["x_0000.nii.gz", "x_0001.nii.gz"], None),
    }
    assert [case.name for case in dataset.test] == ["x"]
    assert problems(dataset) == [
        ("file-double", "a", "labels/a.nii.gz"),
        ("image-missing", "d", "labels/d.nii.gz"),
        ("label-missing", "c", "images/c_0000.nii.gz"),
        ("modality-missing", "e", "images/e_0000.nii.gz"),
        ("modality-unknown", "b", "images/b_0002.nii.gz"),
    ]


def test_two_folders_keep_numbers_that_are_names(tmp_path):
    for number in range(3):
        touch(tmp_path, f"images/amos_000{number}.nii.gz")
    touch(tmp_path, "labels/amos_0000.nii.gz", "labels/amos_0001.nii.gz")
    dataset = read_dataset(tmp_path, strict=False)
    assert [case.name for case in dataset.training] == ["amos_0000", "amos_0001"]
    assert problems(dataset) == [("label-missing", "amos_0002", "images/amos_0002.nii.gz")]


def test_two_folders_a_label_belongs_to_one_case(tmp_path):
    touch(tmp_path, "images/img_1.nii", "images/1.nii", "labels/1.nii")
    dataset = read_dataset(tmp_path, strict=False)
    assert files(dataset) == {"1": (["1.nii"], "1.nii")}
    assert problems(dataset) == [("label-missing", "img_1", "images/img_1.nii")]
    touch(tmp_path, "ct/1.nii")
    with pytest.raises(DatasetError, match="received ct, images"):
        read_dataset(tmp_path)


def test_two_folders_report_images_in_folders_of_their_own(tmp_path):
    touch(tmp_path, "images/z.nii.gz", "labels/z.nii.gz", "images/a/x.nii.gz", "labels/a/x.nii.gz")
    touch(tmp_path, "imagesTs/deep/er/t.nii.gz", "images/resampled/z.nii", "images/.cache/y.nii.gz")
    touch(tmp_path, "labels/lungs/z.nii.gz", "images/notes/README.md", "images/derivatives/z_brain.nii.gz")
    dataset = read_dataset(tmp_path, strict=False)
    assert list(files(dataset)) == ["z"]
    assert problems(dataset) == [
        ("file-name", "", "images/a/x.nii.gz"),
        ("file-name", "", "imagesTs/deep/er/t.nii.gz"),
    ]
    with pytest.raises(DatasetError, match="in the folder of images itself; received also images/a/x"):
        read_dataset(tmp_path)


def test_brats_folders(tmp_path):
    for name in ("BraTS2021_00000", "BraTS2021_00002", "BraTS2021_00003"):
        touch(tmp_path, *(f"{name}/{name}_{kind}.nii.gz" for kind in ("flair", "t1", "t1ce", "t2", "seg")))
    (tmp_path / "BraTS2021_00002/BraTS2021_00002_t1.nii.gz").unlink()
    (tmp_path / "BraTS2021_00003/BraTS2021_00003_seg.nii.gz").unlink()
    dataset = read_dataset(tmp_path, strict=False)
    assert (dataset.layout, dataset.labels) == ("one folder per case", {})
    assert dataset.channels == ("flair", "t1", "t1ce", "t2")
    (case,) = dataset.training
    assert case.name == "BraTS2021_00000"
    assert [path.name[16:-7] for path in (*case.images, *case.label_files)] == [*dataset.channels, "seg"]
    assert [(code, name) for code, name, _ in problems(dataset)] == [
        ("label-missing", "BraTS2021_00003"),
        ("modality-missing", "BraTS2021_00002"),
    ]
    (tmp_path / "sparseg.yaml").write_text("channels: [T2, FLAIR]")
    dataset = read_dataset(tmp_path, strict=False)
    assert [path.name[16:] for path in dataset.training[1].images] == ["t2.nii.gz", "flair.nii.gz"]


def test_masks_in_case_folders(tmp_path):
    for name in ("s0001", "s0002"):
        touch(
            tmp_path, f"{name}/ct.nii.gz", *(f"{name}/segmentations/{s}.nii.gz" for s in ("spleen", "liver"))
        )
    (tmp_path / "s0002/segmentations/liver.nii.gz").unlink()
    dataset = read_dataset(tmp_path, strict=False)
    assert (dataset.channels, dataset.labels) == (("ct",), {0: "background", 1: "liver", 2: "spleen"})
    assert [name for name, _ in dataset.training[0].masks] == ["liver", "spleen"]
    assert problems(dataset) == [("mask-missing", "s0002", "s0002/ct.nii.gz")]
    (tmp_path / "sparseg.yaml").write_text("labels: {0: background, 1: spleen}")
    assert len(read_dataset(tmp_path).training) == 2


def test_case_folders_report_volumes_that_lie_deeper(tmp_path):
    for name in ("p0", "p1", "p2"):
        touch(tmp_path, f"{name}/ct.nii.gz", f"{name}/seg.nii.gz", f"{name}/extra/registered.nii.gz")
    touch(tmp_path, "p3/scan/ct.nii.gz", "p3/scan/seg.nii.gz", "p4/notes/README.md", ".cache/a/ct.nii.gz")
    dataset = read_dataset(tmp_path, strict=False)
    assert list(files(dataset)) == ["p0", "p1", "p2"]
    assert problems(dataset) == [("file-name", "p3", "p3/scan/ct.nii.gz")]
    with pytest.raises(DatasetError, match="in its folder itself; received scan/ct"):
        read_dataset(tmp_path)
    (tmp_path / "p3").rename(tmp_path / "derivatives")
    assert len(read_dataset(tmp_path).training) == 3


def test_case_folders_with_other_names(tmp_path):
    touch(tmp_path, "1/scan_17.nii", "1/my-label.nii", "2/scan_4.nii", "2/my-label.nii")
    dataset = read_dataset(tmp_path)
    assert files(dataset) == {"1": (["scan_17.nii"], "my-label.nii"), "2": (["scan_4.nii"], "my-label.nii")}
    assert dataset.channels == ("image",)
    touch(tmp_path, "2/seg.nii")
    assert problems(read_dataset(tmp_path, strict=False)) == [("label-ambiguous", "2", "2/my-label.nii")]
    for name in ("a", "b"):
        touch(tmp_path / "x", *(f"{name}/pat{name}_{kind}.nii" for kind in ("dwi", "adc", "seg")))
    assert read_dataset(tmp_path / "x").channels == ("adc", "dwi")


def test_channels_of_case_folders_in_other_capitals(tmp_path):
    for name, kinds in {
        "P1": ("ct", "pet"),
        "P2": ("ct", "pet"),
        "P3": ("CT", "PET"),
        "P4": ("a", "b"),
    }.items():
        touch(tmp_path, *(f"{name}/{kind}.nii.gz" for kind in (*kinds, "seg")))
    dataset = read_dataset(tmp_path, strict=False)
    assert dataset.channels == ("ct", "pet")
    assert [path.name for path in dataset.training[2].images] == ["CT.nii.gz", "PET.nii.gz"]
    assert problems(dataset) == [("modality-missing", "P4", "P4/a.nii.gz")]
    with pytest.raises(DatasetError, match=r"every channel \(ct, pet\); received a, b only; name the files"):
        read_dataset(tmp_path)


def test_channels_that_differ_in_capitals_only_stay_apart(tmp_path):
    touch(tmp_path, *(f"{name}/{kind}.nii" for name in "12" for kind in ("T1", "t1", "seg")))
    if len(list((tmp_path / "1").iterdir())) < 3:
        pytest.skip("the file system does not tell capitals apart")
    assert read_dataset(tmp_path).channels == ("T1", "t1")


def test_two_formats_in_a_case_folder(tmp_path):
    touch(tmp_path, "1/ct.nii", "1/ct.nii.gz", "1/masks/liver.nii", "1/masks/liver.nii.gz")
    assert problems(read_dataset(tmp_path, strict=False)) == [
        ("file-double", "1", "1/ct.nii.gz"),
        ("file-double", "1", "1/masks/liver.nii.gz"),
    ]


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    touch(tmp_path, "a.nii")
    monkeypatch.setattr(read, "subfolders", refuse)
    monkeypatch.setattr("sparseg.datasets.layouts.bids_files.subfolders", refuse)
    with pytest.raises(DatasetError, match="must be readable; received Permission denied") as caught:
        read_dataset(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_unknown_layouts_say_what_is_needed(tmp_path):
    touch(tmp_path, "up/set/images/a.nii", "up/set/labels/a.nii", "up/readme.txt")
    with pytest.raises(DatasetError, match=r"give the folder set inside it") as caught:
        read_dataset(tmp_path / "up")
    assert caught.value.code == "layout-unknown"
    assert "BIDS (sub-*" in str(caught.value)
    with pytest.raises(DatasetError, match=r"docs/how-to/datasets.md"):
        read_dataset(tmp_path / "up/readme.txt")
    with pytest.raises(DatasetError, match="must exist"):
        read_dataset(tmp_path / "none")


def test_cases_load_from_plain_folders(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    image, labels = make_phantom((10, 9, 8), spacing=(1.5, 1.0, 2.0), num_classes=3, seed=0)
    for channel in range(2):
        write_image(tmp_path / f"images/a_000{channel}.nii.gz", image)
    write_label_map(tmp_path / "labels/a.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    dataset = read_dataset(tmp_path)
    loaded, ids = load_case(dataset.training[0], dataset)
    np.testing.assert_array_equal(loaded.array[1], loaded.array[0])
    np.testing.assert_array_equal(loaded.array[0], image.array[0])
    np.testing.assert_array_equal(ids.array, labels.array)


def test_a_thousand_cases_are_listed_at_once(tmp_path):
    root = describe(tmp_path)
    (root / "imagesTr").mkdir()
    (root / "labelsTr").mkdir()
    for number in range(1000):
        for name in (f"imagesTr/{number}_0000", f"imagesTr/{number}_0001", f"labelsTr/{number}"):
            (root / f"{name}.nii.gz").touch()
    start = time.process_time()
    dataset = read_dataset(root)
    assert len(dataset.training) == 1000
    assert time.process_time() - start < 0.5
