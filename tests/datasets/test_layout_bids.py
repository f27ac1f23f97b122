"""BIDS: images by subject and session, labels in derivatives or beside. No image is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.read import read_dataset
from sparseg.errors import DatasetError

MANUAL = "derivatives/manual"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def subject(root: Path, name: str, *suffixes: str, session: str = "", dseg: bool = True) -> None:
    folder = f"{name}/{session}/anat" if session else f"{name}/anat"
    start = f"{name}_{session}" if session else name
    touch(root, *(f"{folder}/{start}_{suffix}.nii.gz" for suffix in suffixes))
    if dseg:
        touch(root, f"{MANUAL}/{folder}/{start}_dseg.nii.gz")


def problems(dataset: Dataset) -> list[tuple[str, str]]:
    return sorted((each.code, each.case) for each in dataset.problems)


def test_sessions_channels_and_subjects(tmp_path):
    subject(tmp_path, "sub-01", "T1w", "FLAIR", session="ses-a")
    subject(tmp_path, "sub-01", "T1w", "FLAIR", session="ses-b")
    subject(tmp_path, "sub-02", "T1w", "FLAIR", "T2w")
    subject(tmp_path, "sub-03", "T1w", dseg=True)
    subject(tmp_path, "sub-04", "T1w", "FLAIR", dseg=False)
    subject(tmp_path, "sub-05", "T1w", dseg=False)
    touch(tmp_path, "sub-02/func/sub-02_task-rest_bold.nii.gz", "sub-02/anat/sub-02_T1w.json")
    touch(tmp_path, f"{MANUAL}/sub-09/anat/sub-09_dseg.nii.gz")
    dataset = read_dataset(tmp_path, strict=False)
    assert (dataset.layout, dataset.channels, dataset.labels) == ("BIDS", ("FLAIR", "T1w"), {})
    shown = [(case.name, case.subject) for case in dataset.training]
    assert shown == [("sub-01_ses-a", "sub-01"), ("sub-01_ses-b", "sub-01"), ("sub-02", "sub-02")]
    assert [path.name for path in dataset.training[1].images] == [
        "sub-01_ses-b_FLAIR.nii.gz",
        "sub-01_ses-b_T1w.nii.gz",
    ]
    assert dataset.training[2].label == tmp_path / MANUAL / "sub-02/anat/sub-02_dseg.nii.gz"
    assert [case.name for case in dataset.test] == ["sub-04"]
    assert problems(dataset) == [("image-missing", "sub-09"), ("modality-missing", "sub-03")]
    (tmp_path / "sparseg.yaml").write_text("channels: [T1w]")
    dataset = read_dataset(tmp_path, strict=False)
    assert [case.name for case in dataset.training][-1] == "sub-03"
    assert [case.name for case in dataset.test] == ["sub-04", "sub-05"]


def test_label_names_are_inherited(tmp_path):
    for name in ("sub-01", "sub-02"):
        subject(tmp_path, name, "T1w")
    table = tmp_path / MANUAL / "dseg.tsv"
    table.write_text("index\tname\tcolor\n1\tgrey matter\t#fff\n2\twhite matter\t#eee\n")
    dataset = read_dataset(tmp_path)
    assert dataset.labels == {0: "background", 1: "grey matter", 2: "white matter"}
    near = tmp_path / MANUAL / "sub-01/anat/sub-01_dseg.tsv"
    near.write_text("index\tname\n3\tlesion\n")
    assert read_dataset(tmp_path).labels[3] == "lesion"
    near.write_text("index\tname\n2\tlesion\n")
    with pytest.raises(DatasetError, match="name an id alike; received 2: "):
        read_dataset(tmp_path)
    (tmp_path / "sparseg.yaml").write_text("labels: {0: air, 1: a, 2: b}")
    assert read_dataset(tmp_path).labels == {0: "air", 1: "a", 2: "b"}
    (tmp_path / "sparseg.yaml").unlink()
    near.write_text("index,name\n2,lesion\n")
    with pytest.raises(DatasetError, match="columns index"):
        read_dataset(tmp_path)


def test_masks_of_one_or_several_structures(tmp_path):
    for name in ("sub-01", "sub-02"):
        subject(tmp_path, name, "ct", dseg=False)
        touch(tmp_path, f"{name}/anat/{name}_desc-lesion_mask.nii.gz")
    dataset = read_dataset(tmp_path)
    assert dataset.channels == ("ct",)
    assert dataset.training[0].label == tmp_path / "sub-01/anat/sub-01_desc-lesion_mask.nii.gz"
    for name, label in (("sub-01", "liver"), ("sub-01", "kidney"), ("sub-02", "liver")):
        touch(tmp_path, f"{name}/anat/{name}_label-{label}_mask.nii.gz")
    dataset = read_dataset(tmp_path, strict=False)
    assert dataset.labels == {0: "background", 1: "kidney", 2: "liver"}
    assert [name for name, _ in dataset.training[0].masks] == ["kidney", "liver"]
    assert problems(dataset) == [("mask-missing", "sub-02")]


def test_several_sources_of_labels(tmp_path):
    subject(tmp_path, "sub-01", "T1w")
    touch(tmp_path, "derivatives/brain/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    assert read_dataset(tmp_path).training[0].label.name == "sub-01_dseg.nii.gz"
    touch(tmp_path, "derivatives/auto/sub-01/anat/sub-01_dseg.nii.gz")
    with pytest.raises(DatasetError, match="received derivatives/auto, derivatives/manual") as caught:
        read_dataset(tmp_path)
    assert caught.value.code == "labels-ambiguous"
    for name in ("auto", "manual", "brain"):
        (case,) = read_dataset(tmp_path / "derivatives" / name).training
        assert case.image == tmp_path / "sub-01/anat/sub-01_T1w.nii.gz"
        assert case.label.is_relative_to(tmp_path / "derivatives" / name)


def test_several_labels_of_a_case(tmp_path):
    for name in ("sub-01", "sub-02", "sub-03"):
        subject(tmp_path, name, "T1w")
    touch(tmp_path, f"{MANUAL}/sub-01/anat/sub-01_space-MNI_dseg.nii.gz")
    touch(tmp_path, f"{MANUAL}/sub-02/anat/sub-02_desc-other_dseg.nii.gz")
    subject(tmp_path, "sub-04", "T1w", session="ses-1", dseg=False)
    subject(tmp_path, "sub-04", "T1w", session="ses-2", dseg=False)
    touch(tmp_path, f"{MANUAL}/sub-04/anat/sub-04_dseg.nii.gz")
    subject(tmp_path, "sub-05", "T1w", session="ses-1", dseg=False)
    touch(tmp_path, f"{MANUAL}/sub-05/anat/sub-05_dseg.nii.gz")
    dataset = read_dataset(tmp_path, strict=False)
    assert [case.name for case in dataset.training] == ["sub-01", "sub-03", "sub-05_ses-1"]
    assert dataset.training[0].label.name == "sub-01_dseg.nii.gz"
    assert problems(dataset) == [("label-ambiguous", ""), ("label-ambiguous", "sub-02")]


def test_variants_of_a_suffix_are_channels(tmp_path):
    for name in ("sub-01", "sub-02"):
        subject(tmp_path, name, "T1w", "ce-gadolinium_T1w", "run-1_T2w")
    touch(tmp_path, "sub-01/anat/sub-01_run-1_dseg.nii.gz")
    dataset = read_dataset(tmp_path / MANUAL)
    assert dataset.channels == ("ce-gadolinium_T1w", "T1w")


def test_no_channel_in_common_and_no_images(tmp_path):
    subject(tmp_path, "sub-01", "T1w")
    subject(tmp_path, "sub-02", "T2w")
    with pytest.raises(DatasetError, match="a channel in common; received T1w, T2w"):
        read_dataset(tmp_path)
    (tmp_path / "sparseg.yaml").write_text("channels: [T2w]")
    assert [case.name for case in read_dataset(tmp_path, strict=False).training] == ["sub-02"]
    alone = tmp_path / "alone"
    touch(alone, "sub-01/anat/sub-01_dseg.nii.gz")
    with pytest.raises(DatasetError, match="must hold images"):
        read_dataset(alone)


def test_two_formats_of_one_image(tmp_path):
    subject(tmp_path, "sub-01", "T1w")
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii")
    dataset = read_dataset(tmp_path, strict=False)
    assert problems(dataset) == [("file-double", "sub-01")]


def test_images_whose_names_cannot_be_read_are_problems(tmp_path):
    for name in ("sub-01", "sub-02", "sub-site-03", "sub-Müller", "sub-04_x"):
        subject(tmp_path, name, "T1w")
    touch(tmp_path, "sub-05/sub-05_T1w.nii.gz")
    subject(tmp_path, "sub-06", "run-1_T1w")
    touch(tmp_path, "sub-06/anat/sub-06_run_2_T1w.nii.gz")
    subject(tmp_path, "sub-07", "T1w", session="ses-1")
    touch(tmp_path, "sub-07/ses-2/anat/T1 weighted.nii.gz")
    dataset = read_dataset(tmp_path, strict=False)
    assert [case.name for case in dataset.training] == ["sub-01", "sub-02", "sub-06_run-1", "sub-07_ses-1"]
    found = [(each.code, each.file) for each in dataset.problems if each.code == "file-name"]
    assert sorted(file for _, file in found) == [
        "sub-04_x/anat/sub-04_x_T1w.nii.gz",
        "sub-05/sub-05_T1w.nii.gz",
        "sub-06/anat/sub-06_run_2_T1w.nii.gz",
        "sub-07/ses-2/anat/T1 weighted.nii.gz",
        "sub-Müller/anat/sub-Müller_T1w.nii.gz",
        "sub-site-03/anat/sub-site-03_T1w.nii.gz",
    ]
    with pytest.raises(
        DatasetError, match="letters and digits only between the marks; received sub-04_x_T1w"
    ):
        read_dataset(tmp_path)


def test_extras_are_no_misnamed_images(tmp_path):
    subject(tmp_path, "sub-01", "T1w", session="ses-1")
    subject(tmp_path, "sub-02", "T1w")
    touch(
        tmp_path, "sub-01/masks/lesion.nii.gz", "sub-01/ses-1/brain.nii.gz", "sub-01/ses-2/func/bold.nii.gz"
    )
    touch(tmp_path, "sub-02/anat/brain.nii.gz", "sub-02/anat/sub-02_T1w_defaced.nii.gz", "sub-02/README.md")
    touch(
        tmp_path, "sub-02/anat/._sub-02_T1w x.nii.gz", "sub-02/anat/sub-02_T1w x.json", "sub-02/atlas.nii.gz"
    )
    touch(tmp_path, "sub-02/anat/sub-02_hand_lesion_mask.nii.gz", "sub-03/func/sub-03_x_bold.nii.gz")
    touch(tmp_path, "sub-03/masks/hand_roi2.nii.gz", "derivatives/x/sub-02/anat/sub-02_x_y.nii.gz")
    dataset = read_dataset(tmp_path)
    assert [case.name for case in dataset.training] == ["sub-01_ses-1", "sub-02"]


def test_folders_named_sub_are_not_enough(tmp_path):
    touch(tmp_path, "sub-1/image.nii", "sub-1/seg.nii", "sub-2/image.nii", "sub-2/seg.nii")
    assert read_dataset(tmp_path).layout == "one folder per case"
