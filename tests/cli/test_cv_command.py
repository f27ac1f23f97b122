"""`sparseg cv`: all folds with real trainings, going on, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
import sys

import nibabel as nib
import numpy as np
import pytest

from crossval.conftest import save_fold, write_dataset
from sparseg.crossval.folder import read

TINY = ("--preset", "test_tiny", "--max-steps", "2", "--set", "batch_size=1", "--set", "model.feature_size=2")


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data", ("a", "b", "c"))


@pytest.fixture
def cv(sparseg, dataset, tmp_path):
    """Return `cv(options...)` on the dataset into `run`."""

    def command(*options, data=dataset):
        return sparseg("cv", data, "--out", tmp_path / "run", *options)

    return command


@pytest.mark.slow
def test_a_cross_validation_from_start_to_ensemble(cv, sparseg, dataset, tmp_path):
    run = tmp_path / "run"
    first = cv("--folds", "3", "--seed", "4", "--jobs", "2", *TINY)
    assert first.code == 0, first
    assert "3 folds of 1 cases" in first.out
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "plan.yaml", "splits.json", "cases.json", "fold_0", "fold_1", "fold_2", "logs"),
        *("predictions", "summary.json", "summary.md"),
    }
    found = read(run)
    assert (found.config.seed, found.config.max_steps, found.config.num_folds) == (4, 2, 3)
    summary = json.loads((run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert sorted(row["case"] for row in summary["cases"]) == ["a", "b", "c"]
    for row in summary["cases"]:
        assert found.splits.folds[row["fold"]] == (row["case"],)
    assert [fold["model"]["seed"] for fold in summary["folds"]] == [4, 4, 4]
    assert len({fold["model"]["weights_sha256"] for fold in summary["folds"]}) == 3
    labels = nib.load(run / "predictions" / "a.nii.gz")
    assert labels.shape == (18, 16, 17)

    # Scores of the folder against the references are the same numbers.
    outcome = sparseg(
        "evaluate", "--pred", run / "predictions", "--ref", dataset / "labelsTr", "--out", tmp_path / "e.json"
    )
    assert outcome.code == 0, outcome
    scores = json.loads((tmp_path / "e.json").read_text())
    for own, other in zip(summary["structures"], scores["classes"], strict=True):
        for key in ("dice", "hd95_mm", "nsd", "dice_with_empty"):
            assert own[key] == other[key]

    again = cv()
    assert again.code == 0, again
    assert again.out.count("done before") == 3
    assert again.out.count("(predicted before)") == 3
    scan = dataset / "imagesTr" / "a.nii.gz"
    assert sparseg("predict", scan, "--model", run, "--out", tmp_path / "labels").code == 0
    report = json.loads((tmp_path / "labels" / "report.json").read_text())
    assert [model["model"] for model in report["models"]] == [
        str(run / f"fold_{n}" / "best") for n in range(3)
    ]
    assert np.asarray(nib.load(tmp_path / "labels" / "a.nii.gz").dataobj).shape == (18, 16, 17)


@pytest.mark.slow
def test_a_fold_that_fails_is_named_and_tried_again(cv, tmp_path):
    """A file in the place of a run folder stops one fold only."""
    assert cv("--folds", "3", "--slurm-script", tmp_path / "job.sh", *TINY).code == 0
    (tmp_path / "run" / "fold_1").write_text("in the way")
    outcome = cv()
    assert outcome.code == 1
    assert "fold 0: done" in outcome.out
    assert "fold 1: failed" in outcome.out
    assert "fold 2: done" in outcome.out
    assert f"go on with: sparseg cv {tmp_path / 'data'} --out {tmp_path / 'run'}\n" in outcome.out
    assert not (tmp_path / "run" / "summary.json").exists()
    (tmp_path / "run" / "fold_1").unlink()
    outcome = cv()
    assert outcome.code == 0, outcome
    assert outcome.out.count("done before") == 2


@pytest.mark.slow
def test_script_and_a_single_fold(cv, tmp_path, monkeypatch):
    script = tmp_path / "job.sh"
    outcome = cv("--folds", "3", "--slurm", "partition=gpu,time=60", "--slurm-script", script, *TINY)
    assert outcome.code == 0, outcome
    assert f"send the folds with: sbatch {script}\n" in outcome.out
    assert "--collect\n" in outcome.out
    text = script.read_text()
    assert "#SBATCH --partition=gpu\n" in text
    assert "#SBATCH --array=0-2\n" in text
    assert f"cv {tmp_path / 'data'} --out {tmp_path / 'run'} --fold " in text
    called = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append((program, arguments)))
    assert cv("--fold", "2").code == 0
    ((program, arguments),) = called
    assert program == sys.executable
    assert arguments[1:6] == ("-m", "sparseg", "train", str(tmp_path / "data"), "--out")
    assert arguments[arguments.index("--fold") + 1] == "2"
    cv("--fold", "3").refused("from 0 to 2", "received 3")


def test_what_is_refused_before_anything_starts(cv, tmp_path):
    cv("--fold", "0").refused("start it first", tmp_path / "run")
    cv("--collect").refused("start it first", tmp_path / "run")
    cv("--jobs", "0").refused("at least one fold")
    cv("--collect", "--fold", "1").refused("exclude each other")
    cv("--device-list", "0,,1").refused("device")
    assert not (tmp_path / "run").exists()


def test_folds_that_cannot_be_made_are_refused(cv, tmp_path):
    outcome = cv("--folds", "5", *TINY)
    assert outcome.code == 2
    assert "has 3 folds" in outcome.err
    assert not (tmp_path / "run").exists()


def test_finished_folds_are_collected_with_the_settings_they_have(cv, dataset, tmp_path, classifying):
    del classifying
    from sparseg.crossval.folder import create
    from sparseg.datasets.splits import Splits
    from sparseg.training.config import TrainConfig
    from sparseg.training.data import open_dataset

    data = open_dataset(dataset, workers=1)
    found = create(tmp_path / "run", TrainConfig(preset="test_tiny"), Splits((("a",), ("b", "c"))), *data)
    for fold in found.folds:
        save_fold(found.run(fold), seed=fold)
    outcome = cv("--collect")
    assert outcome.code == 0, outcome
    assert "fold 1: c: Dice 1.000\n" in outcome.out
    assert (
        "| mean | 3 | 1.0000 ± 0.0000 | 0.00 ± 0.00 | 1.0000 ± 0.0000 | 1.0000 |"
        in (tmp_path / "run" / "summary.md").read_text()
    )
    cv("--collect", "--max-steps", "9").refused("same settings", "another max_steps")
