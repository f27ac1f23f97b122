"""`sparseg plan`: files, refusals, and folds beside the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from cli.conftest import Outcome
from planning.tiny import phantom, write_dataset
from sparseg.config import load_yaml, parse_config
from sparseg.training.config import TrainConfig
from sparseg.volumes.nifti_writer import write_image, write_label_map


class Command(Protocol):
    def __call__(self, *arguments: object) -> Outcome: ...


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", num_cases=3)
    return tmp_path / "data"


def add_case(data: Path) -> None:
    """A fourth case."""
    image, labels = phantom(9)
    write_image(data / "imagesTr" / "new.nii.gz", image)
    write_label_map(data / "labelsTr" / "new.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    content = json.loads((data / "dataset.json").read_text())
    content["training"].append({"image": "imagesTr/new.nii.gz", "label": "labelsTr/new.nii.gz"})
    (data / "dataset.json").write_text(json.dumps(content))


def test_writes_a_plan_and_folds(sparseg: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "plan.yaml"
    done = sparseg("plan", data, "--out", out, "--preset", "test_tiny", "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert "3 training and 0 test cases" in done.out
    assert "preprocess.spacing" in done.out
    assert "measured (cpu)" in done.out
    assert "tumor" not in done.out  # in all three cases, so nothing to look at
    assert str(out) in done.out
    config = parse_config(TrainConfig, load_yaml(out))
    assert config.preset == "test_tiny"
    assert config.model["keep_ratio"] == 0.6
    folds = json.loads((out.parent / "splits.json").read_text())["folds"]
    assert sorted(name for fold in folds for name in fold["val"]) == ["case0", "case1", "case2"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["plan.yaml", "splits.json"]


def test_an_edited_plan_is_kept(
    sparseg: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("plan", data, "--preset", "test_tiny", "--no-measure", "--device", "cpu")
    assert sparseg(*command).code == 0
    first = Path("plan.yaml").read_text()
    assert sparseg(*command).code == 0
    assert Path("plan.yaml").read_text() == first
    edited = first.replace("batch_size: 2", "batch_size: 4")
    Path("plan.yaml").write_text(edited)
    sparseg(*command).refused("plan.yaml", "not edited", "--force")
    assert Path("plan.yaml").read_text() == edited
    assert sparseg(*command, "--force").code == 0
    assert Path("plan.yaml").read_text() == first


def test_other_files_are_not_replaced(sparseg: Command, data: Path, tmp_path: Path) -> None:
    sparseg("plan", data, "--out", data / "dataset.json").refused("dataset.json", "other content")
    sparseg("plan", data, "--out", tmp_path).refused("a folder")


def test_cases_stay_in_their_folds(sparseg: Command, data: Path, tmp_path: Path) -> None:
    command = ("plan", data, "--out", tmp_path / "plan.yaml", "--preset", "test_tiny", "--no-measure")
    splits = tmp_path / "splits.json"
    own = {"format": 1, "seed": 5, "folds": [{"val": ["case2"]}, {"val": ["case0", "case1"]}]}
    splits.write_text(json.dumps(own))
    assert sparseg(*command, "--device", "cpu").code == 0
    assert json.loads(splits.read_text()) == own
    add_case(data)
    assert sparseg(*command, "--device", "cpu").code == 0
    folds = [set(fold["val"]) for fold in json.loads(splits.read_text())["folds"]]
    assert folds == [{"case2", "new"}, {"case0", "case1"}]


def test_folds_of_another_dataset_are_kept(sparseg: Command, data: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits.json"
    splits.write_text('{"folds": [{"val": ["x"]}, {"val": ["y"]}]}')
    done = sparseg("plan", data, "--out", tmp_path / "plan.yaml", "--no-measure", "--device", "cpu")
    assert done.code == 2
    done.one_line("splits.json", "no case in common")
    assert '"x"' in splits.read_text()
    assert not (tmp_path / "plan.yaml").exists()


@pytest.mark.slow
def test_a_plan_trains(sparseg: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    done = sparseg("plan", data, "--out", out, "--preset", "test_tiny", "--no-measure", "--device", "cpu")
    assert done.code == 0
    splits = tmp_path / "splits.json"
    trained = sparseg(
        "train", data, "--out", tmp_path / "run", "--config", out, "--splits", splits, "--max-steps", 2
    )
    assert trained.code == 0, trained
    stored = load_yaml(tmp_path / "run" / "config.yaml")
    assert stored["model"] == load_yaml(out)["model"]
    assert stored["preprocess"]["intensity"]["clip"] == [90.0, 211.0]


def test_bad_input_leaves_nothing_behind(sparseg: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "plan.yaml"
    sparseg("plan", tmp_path / "nowhere", "--out", out).refused("nowhere", "exist")
    (data / "labelsTr" / "case1.nii.gz").write_bytes(b"not an image")
    sparseg("plan", data, "--out", out).refused("case1")
    assert not out.parent.exists()


def test_an_unknown_preset_is_refused_before_anything_is_read(
    sparseg: Command, data: Path, tmp_path: Path
) -> None:
    done = sparseg("plan", data, "--out", tmp_path / "plan.yaml", "--preset", "vit_huge")
    done.refused("vit_huge", "vit_tiny_p8")
    assert not (tmp_path / "plan.yaml").exists()


def test_a_missing_gpu_is_said(
    sparseg: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    sparseg("plan", data, "--out", tmp_path / "plan.yaml", "--device", "cuda").refused("cuda", "--device cpu")
