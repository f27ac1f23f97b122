"""Trackers against stand-ins of their packages, and against TensorBoard itself where it is installed."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparseg.errors import ConfigError, MissingExtraError
from sparseg.optional import import_optional
from sparseg.training.monitor import StepInfo
from sparseg.training.tracking import NAMES, Tracker, make_trackers, step_scalars, validation_scalars

Calls = list[tuple[Any, ...]]


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    for key, value in content.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "progress.png")
    return tmp_path / "progress.png"


def use(tracker: Tracker, picture: Path) -> None:
    tracker.log_scalars(3, {"train/loss": np.float32(0.5), "dice/tumor (left)": math.nan, "lr": math.inf})
    tracker.log_image(3, "progress", picture)
    tracker.close()


def fake_tensorboard(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []

    class SummaryWriter:
        def __init__(self, **given: Any) -> None:
            calls.append(("open", given))

        def add_scalar(self, *given: Any) -> None:
            calls.append(("scalar", *given))

        def add_image(self, name: str, pixels: np.ndarray, step: int, dataformats: str) -> None:
            calls.append(("image", name, pixels.tolist(), step, dataformats))

        def close(self) -> None:
            calls.append(("close",))

    name = "torch.utils.tensorboard"
    monkeypatch.setitem(sys.modules, name, module(name, SummaryWriter=SummaryWriter))
    return calls


def test_tensorboard_gets_numbers_and_pictures(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_tensorboard(monkeypatch)
    (tracker,) = make_trackers(["tensorboard"], tmp_path)
    use(tracker, picture)
    pixels = np.arange(24).reshape(2, 3, 4)[..., :3].tolist()
    assert calls == [
        ("open", {"log_dir": str(tmp_path / "tensorboard"), "purge_step": None}),
        ("scalar", "train/loss", 0.5, 3),
        ("image", "progress", pixels, 3, "HWC"),
        ("close",),
    ]


def test_a_resumed_run_replaces_what_lay_behind_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_tensorboard(monkeypatch)
    make_trackers(["tensorboard"], tmp_path, resumed_from=40)
    assert calls[0][1]["purge_step"] == 41


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra tensorboard is not installed")
def test_tensorboard_itself_reads_back_what_was_written(tmp_path: Path, picture: Path) -> None:
    (tracker,) = make_trackers(["tensorboard"], tmp_path)
    use(tracker, picture)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 0.5)]
    assert (events.Images("progress")[0].width, events.Images("progress")[0].height) == (3, 2)


def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []

    class WandbRun:
        def define_metric(self, *given: Any, **named: Any) -> None:
            calls.append(("define", *given, named))

        def log(self, values: dict[str, Any]) -> None:
            calls.append(("log", values))

        def finish(self) -> None:
            calls.append(("finish",))

    def init(**given: Any) -> WandbRun:
        calls.append(("init", given))
        return WandbRun()

    made = module("wandb", init=init, Image=lambda path: ("picture", path), Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", made)
    return calls


def test_wandb_goes_on_under_the_same_id(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_wandb(monkeypatch)
    (tracker,) = make_trackers(["wandb"], tmp_path)
    use(tracker, picture)
    (start, given), *rest = calls
    assert start == "init"
    assert (given["project"], given["name"], given["dir"]) == ("sparseg", tmp_path.name, str(tmp_path))
    assert given["resume"] == "allow"
    assert given["settings"].pop("console") == "off"
    assert set(given["settings"].values()) == {True}
    assert {"x_disable_meta", "x_disable_machine_info", "disable_git"} <= set(given["settings"])
    assert rest == [
        ("define", "*", {"step_metric": "step"}),
        ("log", {"step": 3, "train/loss": 0.5}),
        ("log", {"step": 3, "progress": ("picture", str(picture))}),
        ("finish",),
    ]
    calls.clear()
    make_trackers(["wandb"], tmp_path, resumed_from=3)
    assert calls[0][1]["id"] == given["id"]


def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []

    class MlflowClient:
        def __init__(self, tracking_uri: str) -> None:
            calls.append(("open", tracking_uri))

        def get_experiment_by_name(self, _: str) -> None:
            return None

        def create_experiment(self, name: str, artifact_location: str) -> str:
            calls.append(("experiment", name, artifact_location))
            return "7"

        def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
            calls.append(("run", experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        def log_batch(self, run: str, metrics: list[Any]) -> None:
            calls.append(("batch", run, [(key, value, step) for key, value, _, step in metrics]))

        def log_artifact(self, run: str, path: str, artifact_path: str) -> None:
            calls.append(("artifact", run, path, artifact_path))

        def set_terminated(self, run: str) -> None:
            calls.append(("end", run))

    monkeypatch.setitem(sys.modules, "mlflow", module("mlflow", MlflowClient=MlflowClient))
    entities = module("mlflow.entities", Metric=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    return calls


def test_mlflow_writes_into_the_run_folder(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_mlflow(monkeypatch)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")
    (tracker,) = make_trackers(["mlflow"], tmp_path)
    use(tracker, picture)
    tracker.log_scalars(4, {"dice/tumor (left), big": 0.25})
    assert calls == [
        ("open", f"sqlite:///{tmp_path / 'mlflow.db'}"),
        ("experiment", "sparseg", (tmp_path / "mlflow_artifacts").as_uri()),
        ("run", "7", tmp_path.name),
        ("batch", "r1", [("train/loss", 0.5, 3)]),
        ("artifact", "r1", str(picture), "progress/3"),
        ("end", "r1"),
        ("batch", "r1", [("dice/tumor _left__ big", 0.25, 4)]),
    ]
    calls.clear()
    make_trackers(["mlflow"], tmp_path)
    assert [call[0] for call in calls] == ["open"]


def test_mlflow_reports_nothing_home_unless_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    fake_mlflow(monkeypatch)
    monkeypatch.setattr(os, "environ", {})
    make_trackers(["mlflow"], tmp_path)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "false"
    make_trackers(["mlflow"], tmp_path)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hidden in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(MissingExtraError, match=rf"the tracker {name}.*sparseg\[{name}\]"):
        make_trackers([name], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_closes_what_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_tensorboard(monkeypatch)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="wandb"):
        make_trackers(["tensorboard", "wandb"], tmp_path)
    assert [call[0] for call in calls] == ["open", "close"]


def test_unknown_and_repeated_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_tensorboard(monkeypatch)
    with pytest.raises(ConfigError, match=r"comet.*tensorboard, wandb, mlflow"):
        make_trackers(["tensorboard", "comet"], tmp_path)
    assert calls == []
    assert len(make_trackers(["tensorboard", "tensorboard"], tmp_path)) == 1
    assert make_trackers([], tmp_path) == []


def test_optional_imports_return_the_module() -> None:
    assert import_optional("json", "none").loads("[1]") == [1]
    with pytest.raises(MissingExtraError, match=r"reading cows needs.*no module cows.*sparseg\[farm\]"):
        import_optional("cows.milk", "farm", purpose="reading cows")


@pytest.mark.slow
def test_no_tracker_is_loaded_by_itself() -> None:
    code = "import sys, sparseg.training.tracking\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"tensorboard", "wandb", "mlflow", "matplotlib", "torch"} & set(loaded.split())


def test_names_and_units_of_what_is_tracked() -> None:
    info = StepInfo(
        step=7,
        max_steps=10,
        loss=0.5,
        lr=1e-3,
        seconds=2.0,
        crops_per_second=1.5,
        data_wait=0.25,
        share_done=0.7,
        minutes=3.0,
        memory_bytes=2_000_000_000,
        skipped=1,
    )
    assert step_scalars(info, {"kept/1/class 2": 0.9}) == {
        "train/loss": 0.5,
        "train/lr": 1e-3,
        "train/skipped_steps": 1,
        "speed/crops_per_second": 1.5,
        "speed/data_wait_share": 0.25,
        "speed/memory_gb": 2.0,
        "selection/kept/1/class 2": 0.9,
    }
    assert validation_scalars({"liver": 0.9}, 0.8) == {
        "validation/mean_dice": 0.8,
        "validation/dice/liver": 0.9,
    }
