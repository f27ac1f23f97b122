"""Layouts that list their cases: Decathlon, MONAI datalist, table. No image is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.layouts.common import distinct_names
from sparseg.datasets.read import read_dataset
from sparseg.errors import DatasetError

LABELS = {"background": 0, "liver": 1}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_list(root: Path, content: object, name: str = "list.json") -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return root / name


def problems(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [(each.code, each.case, each.file) for each in dataset.problems]


def test_decathlon_faults_of_cases_are_problems(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTr/c.nii.gz", "labelsTr/a.nii.gz")
    training = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "ab"]
    content = {"modality": {"0": "CT"}, "labels": LABELS, "training": [*training, "imagesTr/c.nii.gz"]}
    write_list(tmp_path, content, "dataset.json")
    dataset = read_dataset(tmp_path, strict=False)
    assert dataset.layout == "Medical Segmentation Decathlon"
    assert [case.name for case in dataset.training] == ["a"]
    assert problems(dataset) == [
        ("file-missing", "b", "labelsTr/b.nii.gz"),
        ("label-missing", "c", "imagesTr/c.nii.gz"),
    ]
    with pytest.raises(DatasetError, match=r"2 problem\(s\)") as caught:
        read_dataset(tmp_path)
    assert caught.value.code == "file-missing"
    assert read_dataset(tmp_path / "dataset.json", strict=False) == dataset


def test_decathlon_with_several_files_and_folds(tmp_path):
    touch(tmp_path, "a_t1.nii.gz", "a_t2.nii.gz", "a.nii.gz")
    entry = {"image": ["a_t1.nii.gz", "a_t2.nii.gz"], "label": "a.nii.gz", "fold": 3, "case": "A"}
    content = {"modality": {"0": "T1", "1": "T2"}, "labels": LABELS, "training": [entry]}
    write_list(tmp_path, content, "dataset.json")
    (case,) = read_dataset(tmp_path).training
    assert (case.name, case.fold) == ("A", 3)
    assert case.images == (tmp_path / "a_t1.nii.gz", tmp_path / "a_t2.nii.gz")


def test_declaration_overrides(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz")
    entry = {"image": "a.nii.gz", "label": "a_seg.nii.gz"}
    file = write_list(tmp_path, {"training": [entry], "labels": LABELS, "modality": {"0": "CT"}})
    assert (
        read_dataset(file).describe().endswith("'list': 1 training and 0 test cases, channels CT, 1 labels")
    )
    (tmp_path / "sparseg.yaml").write_text(
        "name: mine\nchannels: [MR]\nlabels: {0: bg, 1: a, 2: b}\nregions: {all: [1, 2], b: [2]}"
    )
    dataset = read_dataset(file)
    assert (dataset.name, dataset.channels) == ("mine", ("MR",))
    assert dataset.labels == {0: "bg", 1: "a", 2: "b"}
    assert dataset.regions == {"all": (1, 2), "b": (2,)}
    assert read_dataset(tmp_path) == dataset
    (tmp_path / "sparseg.yaml").write_text("regions: {all: [1]}")
    with pytest.raises(DatasetError, match="together with labels"):
        read_dataset(file)


def test_datalist_folds_paths_and_names(tmp_path):
    touch(tmp_path, "data/p1/ct.nii.gz", "data/p1/seg.nii.gz", "data/p2/ct.nii.gz", "data/p2/seg.nii.gz")
    touch(tmp_path, "far/x.nii.gz")
    entries = [
        {"image": f"{p}/ct.nii.gz", "label": f"{p}/seg.nii.gz", "fold": i} for i, p in enumerate(("p1", "p2"))
    ]
    content = {"data_root": "../data", "training": entries, "testing": [str(tmp_path / "far/x.nii.gz")]}
    file = write_list(tmp_path / "lists", content, "folds.json")
    for path in (file, file.parent):
        dataset = read_dataset(path)
        assert dataset.layout == "MONAI datalist"
        assert (dataset.name, dataset.channels, dataset.labels) == ("folds", ("image",), {})
        assert [(case.name, case.fold) for case in dataset.training] == [("p1_ct", 0), ("p2_ct", 1)]
        assert dataset.training[1].images[0].samefile(tmp_path / "data/p2/ct.nii.gz")
        assert [(case.name, case.image) for case in dataset.test] == [("x", tmp_path / "far/x.nii.gz")]


def test_datalist_validation_list_is_fold_0(tmp_path):
    touch(tmp_path, *(f"{n}{kind}.nii" for n in "abc" for kind in ("", "_gt")))
    entries = [{"image": f"{n}.nii", "label": f"{n}_gt.nii"} for n in "abc"]
    content = {"training": entries[:2], "validation": entries[2:]}
    dataset = read_dataset(write_list(tmp_path, content))
    assert [(case.name, case.fold) for case in dataset.training] == [("a", None), ("b", None), ("c", 0)]
    entries[0]["fold"] = 1
    with pytest.raises(DatasetError, match="not with both"):
        read_dataset(write_list(tmp_path, content))


def test_datalist_as_plain_lists(tmp_path):
    touch(tmp_path, "a.nii", "b.nii", "a1.nii", "a2.nii", "seg.nii")
    dataset = read_dataset(write_list(tmp_path, ["a.nii", "b.nii"]))
    assert [case.name for case in dataset.test] == ["a", "b"]
    assert dataset.training == ()
    dataset = read_dataset(write_list(tmp_path, [{"image": ["a1.nii", "a2.nii"], "label": "seg.nii"}]))
    assert dataset.channels == ("image 0", "image 1")
    assert [path.name for path in dataset.training[0].images] == ["a1.nii", "a2.nii"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": [{"label": "a.nii"}]}, "must be a path or have 'image'"),
        ({"training": [{"image": []}]}, "must be a path or have 'image'"),
        ({"training": [{"image": "a.nii", "label": 3}]}, "'label' of an entry"),
        ({"training": [{"image": "a.nii", "fold": -1}]}, "whole number from 0; received -1"),
        ({"training": [{"image": "a.nii", "fold": True}]}, "whole number from 0"),
        ({"training": ["a.nii"], "test": {"a": 1}}, "'test' must be a list"),
        ({"training": ["a.nii"], "root": 3}, "'root' must be a path"),
        ({"training": ["a.nii"], "labels": ["liver"]}, "'labels', a filled object"),
        ({"training": ["a.nii"], "labels": LABELS, "regions": [1]}, "'regions' must map names"),
        ({"training": ["a.nii", "a.nii"]}, "name of its own"),
        (
            {"training": ["a.nii"], "val": [{"image": "b.nii"}]},
            "received 'val'; call it validation, or",
        ),
        ({"training": ["a.nii"], "Train": ["b.nii"]}, "received 'Train'; call it training, or"),
        ({"training": ["a.nii"], "unlabelled": ["b.nii"]}, "call it what its cases are for, or remove it"),
    ],
)
def test_datalist_faults(tmp_path, content, message):
    touch(tmp_path, "a.nii")
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(write_list(tmp_path, content))
    assert caught.value.remedy


def test_other_keys_of_a_datalist_are_left_alone(tmp_path):
    touch(tmp_path, "a.nii", "b.nii")
    content = {"training": ["a.nii"], "testing": ["b.nii"], "val": [], "authors": ["x"], "numTraining": 1}
    extras = {
        "tags": [{"name": "x"}],
        "val_ids": ["a", "b"],
        "licence": "b.nii",
        "test_labels": ["b_seg.nii"],
    }
    assert len(read_dataset(write_list(tmp_path, content | extras)).cases) == 2


def test_a_decathlon_list_under_another_key_is_refused(tmp_path):
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b_seg.nii.gz")
    entries = [{"image": f"{n}.nii.gz", "label": f"{n}_seg.nii.gz"} for n in "ab"]
    content = {"modality": {"0": "CT"}, "labels": LABELS, "training": entries[:1], "valid": entries[1:]}
    write_list(tmp_path, content, "dataset.json")
    with pytest.raises(DatasetError, match="must be called training, validation, test") as caught:
        read_dataset(tmp_path, strict=False)
    assert caught.value.code == "split-unknown"


def test_two_lists_and_other_json(tmp_path):
    touch(tmp_path, "a.nii")
    write_list(tmp_path, {"training": ["a.nii"]}, "fold0.json")
    (tmp_path / "notes.json").write_text("not json")
    assert [case.name for case in read_dataset(tmp_path).test] == ["a"]
    with pytest.raises(DatasetError, match=r"valid JSON"):
        read_dataset(tmp_path / "notes.json")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(DatasetError, match=r"valid JSON"):
        read_dataset(tmp_path / "deep.json")
    write_list(tmp_path, {"training": ["a.nii"]}, "fold1.json")
    with pytest.raises(DatasetError, match=r"received fold0\.json, fold1\.json; give the path"):
        read_dataset(tmp_path)


def test_lists_of_names_are_no_lists_of_images(tmp_path):
    touch(tmp_path, "images/a.nii", "labels/a.nii")
    write_list(tmp_path, [{"train": ["a"], "val": []}], "splits_final.json")
    write_list(tmp_path, {"training": ["a"], "test": []}, "split.json")
    write_list(tmp_path, ["a"], "subjects.json")
    assert read_dataset(tmp_path).layout == "two folders"


def write_table(root: Path, text: str, name: str = "cases.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8-sig")
    return root / name


def test_table_with_everything(tmp_path):
    names = ("a", "b", "c", "d")
    touch(tmp_path, *(f"{n}/{c}.nii.gz" for n in names for c in ("t1", "t2", "seg")))
    rows = [
        "Case;image_T1;image_T2;Label;subject;fold;split;age",
        'A;a/t1.nii.gz;a/t2.nii.gz;a/seg.nii.gz;s1;0;train;"3;4"',
        "B;b/t1.nii.gz;b/t2.nii.gz;b/seg.nii.gz;s1;1;;",
        "C;c/t1.nii.gz;c/t2.nii.gz;;s2;;Test;",
        "D;d/t1.nii.gz;;d/seg.nii.gz;;;;",
        ";;;;;;;",
    ]
    file = write_table(tmp_path, "\n".join(rows))
    dataset = read_dataset(tmp_path, strict=False)
    assert (dataset.layout, dataset.channels) == ("table", ("T1", "T2"))
    shown = [(case.name, case.subject, case.fold) for case in dataset.cases]
    assert shown == [("A", "s1", 0), ("B", "s1", 1), ("C", "s2", None)]
    assert [case.name for case in dataset.test] == ["C"]
    assert dataset.training[0].images == (tmp_path / "a/t1.nii.gz", tmp_path / "a/t2.nii.gz")
    assert problems(dataset) == [("modality-missing", "D", "d/t1.nii.gz")]
    (tmp_path / "sparseg.yaml").write_text("channels: [t2]")
    dataset = read_dataset(file, strict=False)
    assert dataset.training[0].images == (tmp_path / "a/t2.nii.gz",)
    (tmp_path / "sparseg.yaml").write_text("channels: [FLAIR]")
    with pytest.raises(DatasetError, match=r"among those found \(T1, T2\); received FLAIR"):
        read_dataset(file)


def test_table_with_masks(tmp_path):
    touch(tmp_path, "a.nii", "b.nii", "la.nii", "sa.nii", "lb.nii")
    text = "image\tmask_spleen\tmask_liver\na.nii\tsa.nii\tla.nii\nb.nii\t\tlb.nii\n"
    file = write_table(tmp_path, text, "cases.tsv")
    dataset = read_dataset(file, strict=False)
    assert dataset.labels == {0: "background", 1: "spleen", 2: "liver"}
    assert dataset.training[0].masks == (("spleen", tmp_path / "sa.nii"), ("liver", tmp_path / "la.nii"))
    assert problems(dataset) == [("mask-missing", "b", "b.nii")]
    (tmp_path / "sparseg.yaml").write_text("labels: {0: background, 7: liver}")
    dataset = read_dataset(file)
    assert dataset.labels == {0: "background", 7: "liver"}
    assert [case.masks[0][0] for case in dataset.training] == ["liver", "liver"]
    (tmp_path / "sparseg.yaml").write_text("labels: {0: background, 1: kidney}")
    with pytest.raises(DatasetError, match="received kidney"):
        read_dataset(file)


def test_table_numbered_channels_and_no_labels(tmp_path):
    touch(tmp_path, "a.nii", "b.nii")
    file = write_table(tmp_path, "image_1,image_0\nb.nii,a.nii\n")
    dataset = read_dataset(file)
    assert dataset.channels == ("image 0", "image 1")
    assert [path.name for path in dataset.test[0].images] == ["a.nii", "b.nii"]
    (tmp_path / "sparseg.yaml").write_text("channels: [T1, T2]")
    assert read_dataset(file).channels == ("T1", "T2")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("image,image_T1,label\na,b,c\n", "table-columns"),
        ("image,label,mask_liver\na,b,c\n", "table-columns"),
        ("image,label,label\na,b,c\n", "table-columns"),
        ("image,label\na,b,c\n", "table-row"),
        ("image,label,split\na,b,later\n", "split-unknown"),
        ("image,label,fold\na,b,first\n", "fold-invalid"),
        ("image,label,fold,split\na,b,0,train\nc,d,,val\n", "fold-conflict"),
        ("image,label\na.nii,b.nii\n", "file-missing"),
        ("name,label\na.nii,b.nii\n", "layout-unknown"),
    ],
)
def test_table_faults(tmp_path, text, code):
    with pytest.raises(DatasetError) as caught:
        read_dataset(write_table(tmp_path, text))
    assert caught.value.code == code
    assert caught.value.remedy


def test_table_of_other_bytes(tmp_path):
    (tmp_path / "cases.csv").write_bytes(b"image,label\n\xff\xfe,b\n")
    with pytest.raises(DatasetError, match="UTF-8"):
        read_dataset(tmp_path)


def test_names_take_as_many_folders_as_they_need():
    paths = [Path(p) for p in ("x/1/a/ct.nii", "x/2/a/ct.nii", "x/2/b/ct.nii", "y/mr.nii.gz")]
    assert distinct_names(paths) == ["1_a_ct", "2_a_ct", "b_ct", "mr"]
    assert distinct_names([Path("a/ct.nii")] * 2) == ["ct", "ct"]
    assert distinct_names([]) == []
