"""Every case by the model that did not see it, scored by value, and nothing predicted twice."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from crossval.conftest import save_fold, write_progress
from predict.threshold_model import classify
from sparseg.crossval.collect import out_of_fold, predict_and_score, require_finished, structures_of
from sparseg.crossval.folder import create
from sparseg.datasets.splits import Splits
from sparseg.errors import CheckpointError, DatasetError
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.training.config import TrainConfig
from sparseg.training.data import open_dataset
from sparseg.volumes.io import read_volume

SETTINGS = PredictSettings(overlap=0.0)


class Watcher:
    """Remembers the scores."""

    def __init__(self):
        self.scores = []

    def on_case(self, *_):
        return lambda *_: None

    def on_scores(self, scores):
        self.scores.append(scores)


@pytest.fixture
def collect(dataset_folder, trained):
    """Return `collect()`: open the dataset, predict and score."""

    def call(found=trained, **options):
        watcher = Watcher()
        scored = predict_and_score(
            found, *open_dataset(dataset_folder, workers=1), SETTINGS, watcher, **options
        )
        assert watcher.scores == scored
        return scored

    return call


def ids_of(path):
    return np.asarray(nib.load(path).dataobj)


def test_each_case_is_predicted_by_its_own_fold(collect, trained, dataset_folder):
    scored = collect()
    assert [(one.case, one.fold) for one in scored] == [("a", 0), ("c", 0), ("b", 1), ("d", 1)]
    models = [Predictor.from_folder(trained.run(fold), SETTINGS) for fold in trained.folds]
    for one in scored:
        file = dataset_folder / "imagesTr" / f"{one.case}.nii.gz"
        answers = [model.predict_volume(read_volume(file))[0] for model in models]
        assert not np.array_equal(*answers)
        found = trained.predictions / f"{one.case}.nii.gz"
        np.testing.assert_array_equal(ids_of(found), answers[one.fold])
        np.testing.assert_allclose(nib.load(found).affine, nib.load(file).affine, atol=1e-6)


def test_a_perfect_model_scores_one(collect, monkeypatch):
    monkeypatch.setattr(SparseUNETR, "forward", classify)
    for one in collect():
        values = {row["name"]: (row["dice"], row["hd95_mm"], row["nsd"]) for row in one.rows}
        absent = (None, None, None)
        assert values == {"liver": (1.0, 0.0, 1.0), "tumor": absent if one.case == "d" else (1.0, 0.0, 1.0)}


def test_nothing_is_done_twice_and_nothing_stale_is_kept(collect, trained):
    first = collect()
    again = collect()
    assert [one.reused for one in first + again] == [False] * 4 + [True] * 4
    assert [one.rows for one in again] == [one.rows for one in first]
    assert all(one.reused is False for one in collect(tolerance_mm=1.0))
    collect()
    save_fold(trained.run(1), seed=9)  # another model
    (trained.predictions / "a.nii.gz").write_bytes(b"cut off")
    assert [one.reused for one in collect()] == [False, True, False, False]
    assert ids_of(trained.predictions / "a.nii.gz").shape == (18, 16, 17)
    (trained.predictions / "index.json").write_text("[]")
    assert not any(one.reused for one in collect())
    json.loads((trained.predictions / "index.json").read_text(), parse_constant=pytest.fail)


def test_a_case_that_fails_leaves_no_file_and_does_not_stop_the_others(collect, trained, dataset_folder):
    collect()
    save_fold(trained.run(0), seed=8)
    dataset, facts = open_dataset(dataset_folder, workers=1)
    (dataset_folder / "imagesTr" / "a.nii.gz").write_bytes(b"no image")
    scored = predict_and_score(trained, dataset, facts, SETTINGS, Watcher())
    assert [one.case for one in scored if one.error] == ["a"]
    assert "imagesTr/a.nii.gz" in str(scored[0].error)
    assert sorted(path.name for path in trained.predictions.iterdir()) == [
        *("b.nii.gz", "c.nii.gz", "d.nii.gz", "index.json")
    ]


def test_a_model_of_other_labels_is_refused(trained, dataset_folder):
    dataset, facts = open_dataset(dataset_folder, workers=1)
    other = replace(dataset, labels={0: "background", 1: "spleen", 2: "tumor"})
    with pytest.raises(CheckpointError, match="labels of the dataset"):
        predict_and_score(trained, other, facts, SETTINGS, Watcher())


def test_cases_of_one_file_name_are_refused(trained, dataset_folder):
    dataset, facts = open_dataset(dataset_folder, workers=1)
    cases = tuple(
        replace(case, name=name) for case, name in zip(dataset.training, ("x:1", "X_1"), strict=False)
    )
    with pytest.raises(DatasetError, match="file name of its own"):
        predict_and_score(trained, replace(dataset, training=cases), facts[:2], SETTINGS, Watcher())


def test_a_fold_that_is_not_finished_is_named(trained):
    require_finished(trained)
    write_progress(trained.run(1), step=3, finished=False)
    with pytest.raises(CheckpointError, match="received fold 1 at step 3"):
        require_finished(trained)


def test_a_case_of_several_folds_belongs_to_the_first(tmp_path, dataset_folder):
    splits = Splits((("b", "a"), ("b", "c")), training=(("c",), ("a",)))
    assert out_of_fold(
        create(tmp_path / "cv", TrainConfig(), splits, *open_dataset(dataset_folder, workers=1))
    ) == {0: ["a", "b"], 1: ["c"]}


def test_regions_are_scored_where_there_are_any(dataset_folder):
    dataset, _ = open_dataset(dataset_folder, workers=1)
    assert structures_of(dataset) == {"liver": (1,), "tumor": (2,)}
    regions = {"whole": (1, 2), "core": (2,)}
    assert structures_of(replace(dataset, regions=regions)) == regions
