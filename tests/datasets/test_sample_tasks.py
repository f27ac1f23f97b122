"""The standing tasks: fixed splits, complete folders, the real image untouched."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from sparseg.datasets import sample_brain, sample_tasks
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.sample_tasks import BRAIN_LABELS, group_labels, make_task, num_cases
from sparseg.datasets.splits import find_splits, read_splits
from sparseg.datasets.synth.small_structures import draw_small_structures
from sparseg.errors import FetchError
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.volume import Volume


@pytest.fixture
def few(monkeypatch):
    """Fewer and smaller cases than the real tasks."""
    for name, value in {"NUM_SMALL": 3, "NUM_SMALL_VAL": 1, "NUM_SMALL_TEST": 1}.items():
        monkeypatch.setattr(sample_tasks, name, value)
    draw = partial(draw_small_structures, edge=24)
    monkeypatch.setattr(sample_tasks.small, "draw_small_structures", draw)
    for name, value in {"NUM_BRAIN": 3, "NUM_BRAIN_VAL": 1}.items():
        monkeypatch.setattr(sample_tasks, name, value)


@pytest.fixture
def brain_sample(monkeypatch):
    """A sample of 24³ voxels in place of the fetched one: a thalamus between two hippocampi."""
    ids = np.zeros((24, 24, 24), np.uint8)
    ids[4:10, 6:18, 6:18], ids[10:14, 6:18, 6:18], ids[14:20, 6:18, 6:18] = 17, 10, 53
    image = (100.0 + 10 * ids).astype(np.float32)

    def fetch(name, target, *, cache=None):
        assert (name, cache) == ("brain", None)
        for folder in ("imagesTr", "labelsTr"):
            (target / folder).mkdir(parents=True)
        write_image(target / "imagesTr/mni_t1.nii.gz", Volume(image[None], np.eye(4)))
        write_label_map(target / "labelsTr/mni_t1.nii.gz", ids, np.eye(4))
        (target / "ATLAS_TERMS.txt").write_bytes(b"Fran\xe7ois: research only")
        return target

    monkeypatch.setattr(sample_tasks, "fetch_sample", fetch)
    return image, ids


def test_every_structure_of_the_atlas_is_grouped_or_named_as_left_out():
    grouped = {sample_brain.LABELS[i] for i in sample_brain.LABELS if group_labels(np.array(i)) == 0}
    assert grouped == {"background", "cerebrospinal fluid"}
    assert len(BRAIN_LABELS) == 9
    left, right, both = group_labels(np.array([17, 53, 54]))
    assert BRAIN_LABELS[int(left)] == "hippocampus and amygdala"
    assert left == right == both
    assert group_labels(np.array([[4, 14], [16, 24]])).tolist() == [[3, 3], [8, 0]]


@pytest.mark.usefixtures("few")
def test_small_task_is_complete_readable_and_kept(tmp_path):
    made: list[str] = []
    folder = make_task("small", tmp_path / "small", on_case=made.append)
    dataset = read_dataset(folder)
    names = [case.name for case in dataset.training]
    assert names == ["synthetic_0001", "synthetic_0002", "synthetic_0003"]
    assert made == [*names, "synthetic_0004"]
    assert num_cases("small") == len(made)
    assert [case.name for case in dataset.test] == made[3:]
    splits = read_splits(find_splits(folder), dataset.training)
    assert (splits.train(0), splits.val(0)) == (("synthetic_0001", "synthetic_0002"), ("synthetic_0003",))
    expected = draw_small_structures(3, edge=24)
    image, labels = load_case(dataset.test[0], dataset)
    assert np.array_equal(image.array, expected[0].array)
    assert np.array_equal(labels.array, expected[1].array)
    assert make_task("small", folder) == folder
    with pytest.raises(FetchError, match="sparseg CT sample") as error:
        make_task("ct", folder)
    assert "synthetic sparseg task small" in str(error.value)
    (folder / "splits.json").write_text("{}")
    with pytest.raises(FetchError, match=r"splits\.json"):
        make_task("small", folder)


@pytest.mark.usefixtures("few")
def test_brain_task_trains_on_synthesis_and_tests_on_the_real_image(tmp_path, brain_sample):
    image, ids = brain_sample
    folder = make_task("brain", tmp_path / "brain")
    dataset = read_dataset(folder)
    assert dataset.labels == BRAIN_LABELS
    assert read_splits(find_splits(folder), dataset.training).val(0) == ("synthetic_0003",)
    real, labels = load_case(dataset.test[0], dataset)
    assert np.array_equal(real.array[0], image)
    assert np.array_equal(labels.array[0], group_labels(ids))
    synthetic, warped = load_case(dataset.training[0], dataset)
    assert synthetic.spacing == pytest.approx((2.0, 2.0, 2.0))
    assert set(np.unique(warped.array)) == {0, 5, 7}
    assert "research only" in (folder / "ATLAS_TERMS.txt").read_text(encoding="utf-8")
    description = json.loads((folder / "dataset.json").read_text())
    assert "The test case is real" in description["provenance"]
    assert "dataset.json" not in description["sha256"]


def test_the_ct_task_is_the_sample(tmp_path, monkeypatch):
    def fetch(name, target, *, cache=None):
        target.mkdir()
        (target / "dataset.json").write_text(json.dumps({"name": "sparseg CT sample", "from": [name, cache]}))
        return target

    monkeypatch.setattr(sample_tasks, "fetch_sample", fetch)
    folder = make_task("ct", tmp_path / "ct", cache="archives")
    assert json.loads((folder / "dataset.json").read_text())["from"] == ["ct", "archives"]
    assert num_cases("ct") is None
