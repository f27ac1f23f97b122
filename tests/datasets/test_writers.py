"""What is written in every layout is the same cases, voxel by voxel and millimetre by millimetre."""

import csv
import hashlib
import json

import numpy as np
import pytest
import yaml

from sparseg.datasets.facts import measure
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.writers.nnunet import _paint_order
from sparseg.datasets.writers.write import LAYOUTS, write_dataset
from sparseg.datasets.writers.written import Header, WrittenCase
from sparseg.errors import DatasetError, GeometryError, LabelError, VolumeError
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "liver", 2: "tumor", 5: "spleen"}
ABOUT = {"name": "phantoms", "channels": ("CT",), "labels": LABELS}


def ct_case(seed, **options):
    """Whole numbers between -1000 and 200 on a grid that no two axes share."""
    image, labels = make_phantom((12, 10, 9), num_classes=4, seed=seed)
    array = np.rint(image.array * 3 - 1000).astype(np.int16)
    ids = np.array([0, 1, 2, 5], np.int32)[labels.array]
    name = options.pop("name", f"case_{seed}")
    return WrittenCase(name, Volume(array, image.affine), Volume(ids, image.affine), **options)


def mr_case(seed, num_channels, **options):
    case = ct_case(seed, **options)
    image = Volume(
        np.concatenate([case.image.array + 100 * c for c in range(num_channels)]), case.image.affine
    )
    return WrittenCase(case.name, image, case.labels, **options)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


IMAGES = {
    "decathlon": "imagesTr/case_1.nii.gz",
    "nnunet": "imagesTr/case_1_0000.nii.gz",
    "datalist": "images/case_1.nii.gz",
    "bids": "sub-case1/ct/sub-case1_ct.nii.gz",
    "folders": "images/case_1.nii.gz",
    "table": "volumes/case_1_image.nii.gz",
    "dicom": "case_1",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_lie_where_the_layout_wants_them_and_are_equal(layout, tmp_path):
    root = write_dataset(layout, (ct_case(seed) for seed in range(3)), tmp_path / "set", **ABOUT)
    assert root == tmp_path / "set"
    case = ct_case(1)
    read = read_volume(root / IMAGES[layout])
    facts = measure(Volume(read.array, read.affine), case.labels if layout != "dicom" else None)
    expected = measure(case.image, case.labels if layout != "dicom" else None)
    assert facts.content_key == expected.content_key
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_input_gives_equal_bytes(layout, tmp_path):
    made = []
    for name in ("a", "b"):
        write_dataset(layout, [ct_case(0)], tmp_path / name, synthetic="made from a phantom", **ABOUT)
        made.append(digests(tmp_path / name))
    assert made[0] == made[1]
    assert len(made[0]) >= 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_synthetic_data_say_so(layout, tmp_path):
    root = write_dataset(layout, [ct_case(0)], tmp_path / "set", synthetic="made from a phantom", **ABOUT)
    text = (root / ("README" if layout == "bids" else "README.txt")).read_text()
    assert text == "synthetic phantoms\n\nsynthetic: made from a phantom\n"
    file = {"decathlon": "dataset.json", "nnunet": "dataset.json", "datalist": "datalist.json"}.get(layout)
    if file:
        assert json.loads((root / file).read_text())["description"] == "synthetic: made from a phantom"


def test_decathlon_reads_back_as_written(tmp_path):
    cases = [ct_case(0), ct_case(1), ct_case(2, split="test")]
    regions = {"whole": (1, 2), "tumor only": (2,)}
    dataset = read_dataset(write_dataset("decathlon", cases, tmp_path / "set", regions=regions, **ABOUT))
    assert (dataset.name, dataset.channels, dataset.labels) == ("phantoms", ("CT",), LABELS)
    assert dataset.regions == regions
    assert [case.name for case in dataset.training] == ["case_0", "case_1"]
    assert [case.name for case in dataset.test] == ["case_2"]
    for written, case in zip(cases, dataset.cases, strict=True):
        assert measure(*load_case(case, dataset)) == measure(written.image, written.labels)


def test_channels_are_one_file_each_or_a_fourth_axis(tmp_path):
    case = mr_case(0, 2)
    about = {"name": "x", "channels": ("T1w", "T2w"), "labels": LABELS}
    root = write_dataset("decathlon", [case], tmp_path / "msd", **about)
    assert np.array_equal(read_volume(root / "imagesTr/case_0.nii.gz").array, case.image.array)
    assert json.loads((root / "dataset.json").read_text())["modality"] == {"0": "T1w", "1": "T2w"}
    for layout, files in {
        "nnunet": ("imagesTr/case_0_0000.nii.gz", "imagesTr/case_0_0001.nii.gz"),
        "datalist": ("images/case_0_0000.nii.gz", "images/case_0_0001.nii.gz"),
        "folders": ("images/case_0_0000.nii.gz", "images/case_0_0001.nii.gz"),
        "table": ("volumes/case_0_image_0.nii.gz", "volumes/case_0_image_1.nii.gz"),
        "bids": ("sub-case0/anat/sub-case0_T1w.nii.gz", "sub-case0/anat/sub-case0_T2w.nii.gz"),
    }.items():
        root = write_dataset(layout, [case], tmp_path / layout, **about)
        for channel, file in enumerate(files):
            assert np.array_equal(read_volume(root / file).array[0], case.image.array[channel])


def test_label_files_hold_the_ids(tmp_path):
    for layout, file in {
        "nnunet": "labelsTr/case_0.nii.gz",
        "bids": "derivatives/labels/sub-case0/ct/sub-case0_dseg.nii.gz",
        "table": "volumes/case_0_label.nii.gz",
    }.items():
        root = write_dataset(layout, [ct_case(0)], tmp_path / layout, **ABOUT)
        assert np.array_equal(read_labels(root / file).array, ct_case(0).labels.array)
    table = (tmp_path / "bids/derivatives/labels/dseg.tsv").read_text()
    assert table == "index\tname\n0\tbackground\n1\tliver\n2\ttumor\n5\tspleen\n"


def test_nnunet_regions(tmp_path):
    regions = {"whole": (1, 2, 5), "core": (1, 5), "inner": (5,)}
    root = write_dataset("nnunet", [ct_case(0)], tmp_path / "set", regions=regions, **ABOUT)
    content = json.loads((root / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2, 5], "core": [1, 5], "inner": [5]}
    assert content["regions_class_order"] == [2, 1, 5]
    assert yaml.safe_load((root / "sparseg.yaml").read_text())["labels"] == LABELS
    # Painting region by region gives the label map back.
    ids = ct_case(0).labels.array
    painted = np.zeros_like(ids)
    header = Header("x", ("CT",), LABELS, regions)
    for members, label_id in zip(regions.values(), _paint_order(header), strict=True):
        painted[np.isin(ids, members)] = label_id
    assert np.array_equal(painted, ids)


def test_datalist_keeps_folds_and_can_be_absolute(tmp_path):
    cases = [ct_case(0, fold=1), ct_case(1, split="test")]
    root = write_dataset("datalist", cases, tmp_path / "rel", **ABOUT)
    content = json.loads((root / "datalist.json").read_text())
    assert content["training"] == [
        {"image": "images/case_0.nii.gz", "label": "labels/case_0.nii.gz", "fold": 1}
    ]
    assert content["testing"] == [{"image": "images/case_1.nii.gz", "label": "labels/case_1.nii.gz"}]
    root = write_dataset("datalist", cases, tmp_path / "abs", absolute=True, **ABOUT)
    content = json.loads((root / "datalist.json").read_text())
    # The folder was built under another name.
    assert content["training"][0]["image"] == str(tmp_path / "abs/images/case_0.nii.gz")


def test_table_rows(tmp_path):
    cases = [ct_case(0, subject="p1", fold=2), ct_case(1, split="test")]
    root = write_dataset("table", cases, tmp_path / "set", **ABOUT)
    with (root / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "case": "case_0",
        "subject": "p1",
        "split": "train",
        "fold": "2",
        "image": "volumes/case_0_image.nii.gz",
        "label": "volumes/case_0_label.nii.gz",
    }
    assert (rows[1]["subject"], rows[1]["split"], rows[1]["fold"]) == ("case_1", "test", "")


def test_bids_sessions_of_one_subject(tmp_path):
    cases = [ct_case(0, subject="p_1"), ct_case(1, subject="p_1")]
    root = write_dataset("bids", cases, tmp_path / "set", **ABOUT)
    assert sorted(str(path.relative_to(root)) for path in (root / "sub-p1").rglob("*.gz")) == [
        "sub-p1/ses-case0/ct/sub-p1_ses-case0_ct.nii.gz",
        "sub-p1/ses-case1/ct/sub-p1_ses-case1_ct.nii.gz",
    ]
    assert (root / "participants.tsv").read_text() == "participant_id\nsub-p1\n"


class TestRefusals:
    @pytest.mark.parametrize(
        ("layout", "case", "code"),
        [
            ("decathlon", ct_case(0, name="../out"), "case-name"),
            ("decathlon", ct_case(0, name=""), "case-name"),
            ("decathlon", ct_case(0, fold=1), "layout-room"),
            ("nnunet", ct_case(0, subject="p"), "layout-room"),
            ("bids", ct_case(0, split="test"), "layout-room"),
            ("dicom", ct_case(0, split="test"), "layout-room"),
            ("folders", WrittenCase("a", ct_case(0).image, None), "layout-room"),
            ("table", mr_case(0, 2), "channel-count"),
            ("bids", ct_case(0, name="--"), "case-name"),
        ],
    )
    def test_case_that_does_not_fit(self, layout, case, code, tmp_path):
        with pytest.raises(DatasetError) as caught:
            write_dataset(layout, [case], tmp_path / "set", **ABOUT)
        assert caught.value.code == code
        assert list(tmp_path.iterdir()) == []

    def test_double_names(self, tmp_path):
        with pytest.raises(DatasetError, match="CASE_0"):
            write_dataset("table", [ct_case(0), ct_case(1, name="CASE_0")], tmp_path / "set", **ABOUT)
        with pytest.raises(DatasetError, match="letters and digits"):
            write_dataset("bids", [ct_case(0), ct_case(1, name="case0")], tmp_path / "set", **ABOUT)
        assert list(tmp_path.iterdir()) == []

    def test_filled_folder_stays_as_it_is(self, tmp_path):
        (tmp_path / "mine.txt").write_text("x")
        with pytest.raises(DatasetError, match="new or empty"):
            write_dataset("folders", [ct_case(0)], tmp_path, **ABOUT)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_empty_folder_is_taken(self, tmp_path):
        (tmp_path / "set").mkdir()
        assert (write_dataset("folders", [ct_case(0)], tmp_path / "set", **ABOUT) / "images").is_dir()

    def test_wrong_grid_ids_and_range(self, tmp_path):
        good = ct_case(0)
        moved = good.labels.affine.copy()
        moved[0, 3] += 1
        bad = WrittenCase("a", good.image, Volume(good.labels.array, moved))
        with pytest.raises(GeometryError, match="same place"):
            write_dataset("table", [bad], tmp_path / "set", **ABOUT)
        with pytest.raises(LabelError, match="received 5"):
            write_dataset(
                "table", [good], tmp_path / "set", name="x", channels=("CT",), labels={0: "b", 1: "c", 2: "d"}
            )
        hot = Volume(np.full((1, *good.image.shape), 40000, np.float32), good.image.affine)
        with pytest.raises(VolumeError, match="40000"):
            write_dataset("dicom", [WrittenCase("a", hot, good.labels)], tmp_path / "set", **ABOUT)
        assert list(tmp_path.iterdir()) == []

    def test_options(self, tmp_path):
        for layout, options, words in [
            ("excel", {}, "layout to write"),
            ("bids", {"file_ending": ".nii"}, "file ending"),
            ("nnunet", {"file_ending": ".png"}, "file ending"),
            ("nnunet", {"absolute": True}, "absolute"),
        ]:
            with pytest.raises(DatasetError, match=words):
                write_dataset(layout, [ct_case(0)], tmp_path / "set", **ABOUT, **options)
        with pytest.raises(DatasetError, match="at least one case"):
            write_dataset("nnunet", [], tmp_path / "set", **ABOUT)
        with pytest.raises(DatasetError, match="alphabetical"):
            write_dataset(
                "bids", [mr_case(0, 2)], tmp_path / "s", name="x", channels=("T2w", "T1w"), labels=LABELS
            )


def test_one_case_in_memory_at_a_time(tmp_path):
    written = []

    def cases():
        for seed in range(3):
            if seed:
                written.append((len(list(tmp_path.glob(".*.part/images/*.gz"))), seed))
            yield ct_case(seed)

    write_dataset("folders", cases(), tmp_path / "set", **ABOUT)
    assert written == [(1, 1), (2, 2)]


def test_extra_files(tmp_path):
    root = write_dataset("table", [ct_case(0)], tmp_path / "set", extra_files={"a.json": "{}"}, **ABOUT)
    assert (root / "a.json").read_text() == "{}\n"
