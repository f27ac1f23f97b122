"""Descriptions of datasets: what is read, what is refused."""

import numpy as np
import pytest

from sparseg.datasets.label_table import parse_labels, region_masks
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.errors import DatasetError, VolumeError
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.volume import Volume


def test_reads_cases_labels_and_channels(toy):
    root, _ = toy
    dataset = read_dataset(root)
    assert [case.name for case in dataset.training] == ["a", "b"]
    assert dataset.training[0].label == root / "labelsTr/a.nii.gz"
    assert [(case.name, case.label) for case in dataset.test] == [("c", None)]
    assert dataset.labels == {0: "background", 1: "liver", 2: "tumor"}
    assert dataset.channels == ("CT",)
    assert dataset.num_classes == 3
    image, labels = load_case(dataset.training[1], dataset)
    assert image.shape == labels.shape == (10, 9, 8)
    assert set(np.unique(labels.array)) == {0, 1, 2}
    assert load_case(dataset.test[0], dataset)[1] is None


def test_nnunet_style_labels_and_test_entries_with_labels(toy):
    _, write_json = toy
    root = write_json(
        labels={"background": 0, "tumor": 2, "liver": 1},
        channel_names=None,
        modality={"0": "MR"},
        test=[{"image": "imagesTs/c.nii.gz", "label": "labelsTr/a.nii.gz"}],
    )
    dataset = read_dataset(root)
    assert list(dataset.labels.items()) == [(0, "background"), (1, "liver"), (2, "tumor")]
    assert dataset.channels == ("MR",)
    assert dataset.test[0].label == root / "labelsTr/a.nii.gz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "'labels'"),
        ({"training": []}, "'training'"),
        ({"channel_names": None}, "'modality'"),
        ({"channel_names": {"1": "CT"}}, "count from"),
        ({"labels": {"0": "background", "1": "liver", "01": "tumor"}}, "declared once"),
        ({"labels": {"1": "liver"}}, "background"),
        ({"labels": {"0": "background", "1": "liver", "2": "liver"}}, "differ"),
        ({"labels": {"background": 0, "liver": 0.5}}, "map ids to names"),
        ({"training": [{"image": "imagesTr/a.nii.gz"}]}, "an image without a label"),
        ({"test": ["imagesTr/a.nii.gz"]}, "name of its own"),
        ({"test": ["../secret.nii.gz"]}, "inside the dataset folder"),
        ({"test": ["/etc/passwd"]}, "inside the dataset folder"),
        ({"test": ["imagesTs/../../x.nii.gz"]}, "inside the dataset folder"),
        ({"test": ["imagesTs/none.nii.gz"]}, "none.nii.gz: .* is listed is missing"),
        ({"test": [3]}, "an entry of 'test'"),
    ],
)
def test_faults_are_named(toy, changes, message):
    _, write_json = toy
    with pytest.raises(DatasetError, match=message):
        read_dataset(write_json(**changes))


def test_folder_without_description_and_broken_json(tmp_path):
    with pytest.raises(DatasetError, match=r"known layout"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{,}")
    with pytest.raises(DatasetError, match="valid JSON"):
        read_dataset(tmp_path)


def test_channels_must_agree(toy):
    root, write_json = toy
    dataset = read_dataset(write_json(channel_names={"0": "T1", "1": "T2"}))
    with pytest.raises(DatasetError, match="2 channels"):
        load_case(dataset.training[0], dataset)
    two = Volume(np.zeros((2, 10, 9, 8), np.float32), np.eye(4))
    write_image(root / "labelsTr/a.nii.gz", two)
    write_image(root / "imagesTr/a.nii.gz", two)
    with pytest.raises(VolumeError, match="three axes"):
        load_case(dataset.training[0], dataset)


def test_regions_of_both_styles():
    brats = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    labels, regions = parse_labels(brats)
    assert labels == {0: "background", 1: "label 1", 2: "label 2", 3: "enhancing"}
    assert regions == {"whole tumor": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    gaps, same = parse_labels({"0": "bg", "1": "ncr", "4": "et"}, {"WT": [1, 4], "ET": [4]})
    assert list(gaps) == [0, 1, 4]
    assert same == {"WT": (1, 4), "ET": (4,)}
    with pytest.raises(DatasetError, match="declared ids"):
        parse_labels({"0": "bg", "1": "ncr"}, {"WT": [1, 2]})
    masks = region_masks(np.array([[[0, 1, 4]]]), same)
    np.testing.assert_array_equal(masks[:, 0, 0], [[0, 1, 1], [0, 0, 1]])
