"""What all folds share, and how far each has come."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from crossval.conftest import SPLITS, write_progress
from sparseg.crossval.collect import require_finished
from sparseg.crossval.folder import (
    create,
    exists,
    read,
    require_folds,
    require_same_cases,
    require_same_settings,
)
from sparseg.crossval.status import FoldStatus, last_error, read_status
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.splits import Splits
from sparseg.errors import ConfigError, DatasetError
from sparseg.training import log
from sparseg.training.config import TrainConfig
from sparseg.training.data import open_dataset
from training.toy import run_toy, write_toy_dataset


def make_data(names, contents=None):
    """A dataset and what stands for the facts of its cases: hashes."""
    cases = tuple(Case(name, (Path(name),)) for name in names)
    facts = [Mock(content_key=(contents or {}).get(name, f"content of {name}")) for name in names]
    return Dataset("toy", ("CT",), {0: "background", 1: "liver"}, cases, (), Path()), facts


DATA = make_data("abcd")


def test_settings_and_folds_are_read_back(tmp_path):
    config = TrainConfig(preset="test_tiny", model={"keep_ratio": 0.25}, max_steps=7)
    made = create(tmp_path / "cv", config, SPLITS, *DATA, {"plan.yaml": "why"})
    assert exists(tmp_path / "cv")
    assert read(tmp_path / "cv") == made
    assert (tmp_path / "cv" / "plan.yaml").read_text() == "why"
    assert [made.run(fold).name for fold in made.folds] == ["fold_0", "fold_1"]


def test_a_folder_with_other_files_is_refused_one_with_a_cut_off_start_is_not(tmp_path):
    folder = tmp_path / "cv"
    folder.mkdir()
    (folder / "splits.json").write_text("{")
    (folder / "plan.yaml").write_text("old")
    create(folder, TrainConfig(), SPLITS, *DATA, {"plan.yaml": "new"})
    assert read(folder).splits == SPLITS
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="empty folder"):
        create(tmp_path / "mine", TrainConfig(), SPLITS, *DATA)
    with pytest.raises(ConfigError, match="start it first"):
        read(tmp_path / "mine")


def test_a_single_training_is_no_cross_validation(tmp_path):
    """It has settings and folds, too; folds trained into it would stand beside its own model."""
    run = tmp_path / "run"
    create(run, TrainConfig(), SPLITS, *DATA)
    (run / "manifest.json").write_text("{}")
    assert not exists(run)
    with pytest.raises(ConfigError, match="empty folder; received a single training"):
        create(run, TrainConfig(), SPLITS, *DATA)
    with pytest.raises(ConfigError, match="received a single training"):
        read(run)


def test_going_on_keeps_the_settings(tmp_path):
    config = TrainConfig(preset="test_tiny", model={"keep_ratio": 0.25}, max_steps=7)
    made = create(tmp_path / "cv", config, SPLITS, *DATA)
    require_same_settings(made, {}, (), {})
    same = {"model": {"keep_ratio": 0.25}, "fold": 3}
    require_same_settings(made, same, ["optimizer.lr=1e-3"], {"max_steps": 7})
    for values, assignments, flags, name in (
        ({"batch_size": 5}, (), {}, "batch_size"),
        ({}, ("model.keep_ratio=0.5",), {}, "model"),
        ({}, (), {"max_steps": 8}, "max_steps"),
    ):
        with pytest.raises(ConfigError, match=f"another {name};"):
            require_same_settings(made, values, assignments, flags)


def test_going_on_keeps_the_cases(tmp_path):
    made = create(tmp_path / "cv", TrainConfig(), SPLITS, *make_data("abcde"))  # one is in no fold
    require_same_cases(made, *make_data("edcba"))
    for names, contents, changes in (
        ("bcdef", {}, "received 1 new: f; 1 gone: a;"),
        ("abcde", {"c": "other"}, "received 1 changed: c;"),
    ):
        with pytest.raises(DatasetError, match=changes):
            require_same_cases(made, *make_data(names, contents))
    dataset, facts = make_data("abcde")
    with pytest.raises(DatasetError, match="received other channels; other labels;"):
        require_same_cases(made, replace(dataset, labels={0: "background", 1: "x"}, channels=("MR",)), facts)
    (made.folder / "cases.json").write_text("{")
    with pytest.raises(ConfigError, match="must be readable"):
        require_same_cases(made, dataset, facts)


def test_folders_of_earlier_versions_know_names_alone(tmp_path):
    made = create(tmp_path / "cv", TrainConfig(), SPLITS, *DATA)
    (made.folder / "cases.json").unlink()
    require_same_cases(made, *make_data("dcba", {"a": "other"}))
    with pytest.raises(DatasetError, match="1 new: e; 1 gone: a"):
        require_same_cases(made, *make_data("bcde"))


def test_the_number_of_folds_asked_for_is_the_number_made():
    require_folds(SPLITS, None)
    require_folds(SPLITS, 2)
    with pytest.raises(ConfigError, match="has 2 folds"):
        require_folds(SPLITS, 5)


def test_status_of_a_run(tmp_path):
    nothing = read_status(tmp_path / "none", 4)
    assert nothing.fold == 4
    assert (nothing.finished, nothing.started, nothing.step) == (False, False, 0)
    assert math.isnan(nothing.loss)
    assert math.isnan(nothing.dice)
    write_progress(tmp_path / "run", step=4, finished=False, dice=0.75)
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "loss": 0.1}\n{"kind": "train", "st')
    assert read_status(tmp_path / "run", 1) == FoldStatus(1, False, True, 5, 0.1, 0.75)
    write_progress(tmp_path / "run", step=6, finished=True)
    assert read_status(tmp_path / "run", 1).finished


def test_a_fold_that_patience_ended_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr("sparseg.training.loop.validate", lambda *_, **__: [0.5, 0.5])
    monkeypatch.setattr(log, "draw", lambda _: None)
    dataset = write_toy_dataset(tmp_path / "data")
    splits = Splits((("case0",), ("case1", "case2")))
    found = create(tmp_path / "cv", TrainConfig(), splits, *open_dataset(dataset, workers=1))
    for fold in found.folds:
        run_toy(dataset, found.run(fold), fold=fold, max_steps=9, validate_every=1, patience=1)
        status = read_status(found.run(fold), fold)
        assert (status.finished, status.step) == (True, 2)
    require_finished(found)


def test_only_the_tail_of_a_long_log_is_read(tmp_path):
    rows = [json.dumps({"kind": "train", "step": number, "loss": 1.0}) for number in range(1, 20_001)]
    rows[-1] = json.dumps({"kind": "train", "step": 20_000, "loss": None})
    (tmp_path / "log.jsonl").write_text("\n".join(rows) + "\n")
    status = read_status(tmp_path, 0)
    assert status.step == 20_000
    assert math.isnan(status.loss)


def test_the_last_error_of_a_log(tmp_path):
    log = tmp_path / "log.txt"
    assert last_error(log) == ""
    log.write_text("reading\nRuntimeError: odd\n\n")
    assert last_error(log) == "RuntimeError: odd"
    log.write_text("error: first\nerror: data/x: too small; crop less\nTraceback\n")
    assert last_error(log) == "data/x: too small; crop less"
