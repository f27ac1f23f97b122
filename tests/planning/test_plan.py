"""Whole plans of tiny datasets: valid, explained, the same every time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from planning.tiny import LABELS, facts_of, write_dataset
from sparseg.config import load_yaml, parse_config
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.fingerprint import make_fingerprint
from sparseg.errors import ConfigError, DatasetError
from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset
from sparseg.planning import device
from sparseg.planning.device import choose_num_workers, choose_precision
from sparseg.planning.estimates import count_windows, disk_bytes, duration_text, token_counts
from sparseg.planning.memory import training_bytes
from sparseg.planning.plan import Plan, make_plan
from sparseg.planning.text import comment, is_unedited, seal
from sparseg.training.config import TrainConfig


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("tiny") / "data")


def plan_of(dataset: Dataset, **changes: Any) -> Plan:
    options = {"preset": "test_tiny", "measure": False, "usable": 2**34} | changes
    return make_plan(dataset, facts_of(dataset), **options)


def test_settings(dataset: Dataset) -> None:
    assert plan_of(dataset, seed=3).settings == {
        "preset": "test_tiny",
        "batch_size": 2,
        "model": {"patch_size": [2, 4, 2], "roi_size": [8, 16, 8], "keep_ratio": 0.6},
        "preprocess": {
            "spacing": [1.5, 1.0, 2.0],
            "foreground_crop": True,
            "margin_mm": 5.0,
            "intensity": {"kind": "ct", "clip": [90.0, 211.0]},
        },
        "augment": {"flip": [0.2, 0.2, 0.2]},
        "max_steps": 750,
        "validate_every": 50,
        "precision": "fp32",
        "num_workers": 0,
        "seed": 3,
    }


def test_the_file_gives_back_the_settings(dataset: Dataset, tmp_path: Path) -> None:
    plan = plan_of(dataset)
    file = tmp_path / "plan.yaml"
    file.write_text(plan.to_yaml(), encoding="utf-8")
    assert load_yaml(file) == plan.settings
    config = parse_config(TrainConfig, load_yaml(file))
    assert config == plan.config()
    assert config.preprocess is not None
    assert config.preprocess.spacing == (1.5, 1.0, 2.0)
    model = SegmenterConfig(**{**preset(config.preset), **config.model})
    assert token_counts(model) == (64, 38, 22, 13)


def test_every_setting_is_explained(dataset: Dataset) -> None:
    lines = plan_of(dataset).to_yaml().splitlines()
    for number, line in enumerate(lines):
        if line and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("# "), line
    assert max(map(len, lines)) <= 100
    assert "time per step: not measured" in lines[-1]


def test_text_is_the_same_every_time_and_names_no_files(dataset: Dataset, tmp_path: Path) -> None:
    text = plan_of(dataset).to_yaml()
    assert plan_of(dataset).to_yaml() == text
    assert plan_of(dataset, usable=2**33).to_yaml() == text
    assert str(dataset.root) not in text
    assert "case0" not in text
    # The same cases elsewhere, under other names and in another order.
    cases = []
    for number, case in enumerate(reversed(dataset.training)):
        assert case.label is not None
        image, label = tmp_path / f"x{number}.nii.gz", tmp_path / f"y{number}.nii.gz"
        shutil.copy(case.image, image)
        shutil.copy(case.label, label)
        cases.append(replace(case, name=f"x{number}", images=(image,), label=label))
    assert plan_of(replace(dataset, training=tuple(cases))).to_yaml() == text


def test_measured_time_is_in_the_estimates_only(dataset: Dataset) -> None:
    plan = plan_of(dataset, measure=True)
    seconds = plan.estimates.seconds_per_step
    assert seconds is not None
    assert plan.estimates.hours == pytest.approx(750 * seconds / 3600)
    assert plan.settings == plan_of(dataset).settings
    assert "measured (cpu)" in plan.to_yaml()
    assert "not measured" not in plan.to_yaml()


def test_estimates(dataset: Dataset) -> None:
    found = plan_of(dataset).estimates
    # The phantoms keep their grid: 20 x 18 x 16 voxels, windows of 8 x 16 x 8.
    assert found.shape_median == (20, 18, 16)
    assert (found.windows_median, found.windows_max) == (24, 24)
    assert found.disk_bytes == 3 * 20 * 18 * 16 * 3
    assert found.steps_per_epoch == 9
    assert count_windows((4, 4, 4), (8, 16, 8)) == 1
    assert count_windows((8, 16, 9), (8, 16, 8)) == 2
    assert disk_bytes([(2, 2, 2)], 4) == 8 * 9
    assert [duration_text(s) for s in (1.26, 119, 120, 7199, 7200)] == [
        "1.3 s",
        "119.0 s",
        "2 min",
        "120 min",
        "2.0 h",
    ]


def test_fingerprint_and_warnings(tmp_path: Path) -> None:
    dataset = write_dataset(
        tmp_path / "data", num_cases=2, labels={**LABELS, 3: "left lung", 4: "right lung"}
    )
    plan = plan_of(dataset, usable=1)
    assert plan.fingerprint == make_fingerprint(facts_of(dataset))
    assert plan.fingerprint.key in plan.to_yaml()
    assert plan.settings["augment"]["flip"] == [0.0, 0.2, 0.2]
    assert plan.warnings[0].startswith("training will probably run out of memory")
    assert plan.warnings[1] == "training cases: only 2, so every class is in few"
    assert not any("liver" in line for line in plan.warnings)
    assert "left lung (id 3) is in no training case" in plan.warnings
    assert "# Worth a look" in plan.to_yaml()


def test_a_step_that_runs_out_of_memory_is_said(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("sparseg.planning.measure._time_steps", fail)
    plan = plan_of(dataset, measure=True)
    assert plan.estimates.seconds_per_step is None
    assert plan.warnings[0].startswith("a training step ran out of the GPU's memory")


def test_regions_and_dense_presets(dataset: Dataset) -> None:
    regions = replace(dataset, regions={"all": (1, 2), "core": (2,)})
    plan = plan_of(regions, preset="vit_base_p16")
    assert plan.settings["preset"] == "vit_base_p16"
    assert "keep_ratio" not in plan.settings["model"]
    assert plan.estimates.token_counts == (3 * 2 * 2,)


def test_default_preset_on_the_cpu(dataset: Dataset) -> None:
    plan = plan_of(dataset, preset=None)
    assert plan.settings["preset"] == "fast_tiny_p8"
    assert plan.settings["model"]["patch_size"] == [4, 8, 4]
    assert plan.settings["model"]["keep_ratio"] == 0.27
    assert plan.settings["selection"]["elastic_keep"] == [0.07, 0.14, 0.27, 0.54]
    assert plan.config().selection.elastic_keep == (0.07, 0.14, 0.27, 0.54)


def test_memory_is_that_of_the_step_that_keeps_most(dataset: Dataset) -> None:
    seen = []

    def note(config: SegmenterConfig, batch_size: int, *, regions: bool) -> int:
        seen.append(config.keep_ratio)
        return training_bytes(config, batch_size, regions=regions)

    with mock.patch("sparseg.planning.plan.training_bytes", note):
        plan = plan_of(dataset, preset=None)
    assert set(seen) == {plan.settings["selection"]["elastic_keep"][-1]}
    assert seen[0] > plan.settings["model"]["keep_ratio"]


def test_mr_has_no_window(dataset: Dataset) -> None:
    plan = plan_of(replace(dataset, channels=("FLAIR",)))
    assert plan.settings["preprocess"]["intensity"] == {"kind": "mr"}
    assert "not 0" in plan.explanations["preprocess.foreground_crop"]


def test_what_cannot_be_planned(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="facts of every training case"):
        make_plan(dataset, facts_of(dataset)[:2], measure=False)
    with pytest.raises(DatasetError, match="must have labels"):
        plan_of(replace(dataset, labels={}))
    with pytest.raises(DatasetError, match="one number of channels"):
        plan_of(replace(dataset, training=()))
    with pytest.raises(ConfigError, match="a preset must be one of"):
        plan_of(dataset, preset="vit_huge")


def test_the_seal_tells_an_edit() -> None:
    text = seal(["# head", "", "a: 1"])
    assert is_unedited(text)
    assert is_unedited(text.replace("\n", "\r\n"))
    assert not is_unedited(text.replace("a: 1", "a: 2"))
    assert not is_unedited(text + "b: 1\n")
    assert not is_unedited("a: 1\n")
    assert not is_unedited("")


def test_names_with_line_ends_stay_in_their_comment() -> None:
    lines = comment("label 'x\nmax_steps: 1' and a" + " word" * 40)
    assert len(lines) > 1
    assert all(line.startswith("# ") for line in lines)
    assert yaml.safe_load("\n".join(lines)) is None


def test_the_papers_presets_keep_their_settings(dataset: Dataset) -> None:
    plan = plan_of(dataset, preset="btcv")
    assert plan.settings["model"] == {"patch_size": [8, 8, 8], "roi_size": [96, 96, 96]}
    assert plan.explanations["model.roi_size"].endswith("as published")


def test_use_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (choose_precision("cpu").value, choose_num_workers("cpu").value) == ("fp32", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(device, "default_workers", lambda: 16)
    assert (choose_precision("cuda").value, choose_num_workers("cuda:0").value) == ("bf16", 8)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(device, "default_workers", lambda: 3)
    assert (choose_precision("cuda").value, choose_num_workers("cuda").value) == ("fp32", 2)
