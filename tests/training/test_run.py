"""Whole runs of a few steps: repeatable, resumable, and able to learn."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparseg.checkpoints.folder import find_model, load_model, read_card
from sparseg.errors import CheckpointError, ConfigError, NumericsError
from sparseg.training import log
from sparseg.training.batches import Batch
from sparseg.training.loop import Run
from sparseg.training.start import stored_config
from sparseg.training.state import FOLDER
from training.toy import CT, Watcher, run_toy, toy_config, write_toy_dataset


def weights(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.plain_net.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def train_rows(folder: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["lr"]) for row in log.read(folder) if row["kind"] == "train"]


class StoppedError(Exception):
    """Ends a run from inside, as a lost connection to the monitor would."""


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "draw", lambda _: None)
        folder = tmp_path_factory.mktemp("whole")
        run, stopped = run_toy(dataset, folder)
    assert stopped is None
    assert run.progress.step == 6
    return folder, run


@pytest.mark.usefixtures("no_figure")
class TestT2Resume:
    """Row T2: a resumed run is the uninterrupted one, bit for bit."""

    def test_t9_the_same_seed_gives_the_same_weights(
        self, dataset: Path, whole: tuple[Path, Run], tmp_path: Path
    ) -> None:
        run, _ = run_toy(dataset, tmp_path)
        assert same(weights(run), weights(whole[1]))
        assert train_rows(tmp_path) == train_rows(whole[0])

    def test_another_seed_gives_others(self, dataset: Path, whole: tuple[Path, Run], tmp_path: Path) -> None:
        run, _ = run_toy(dataset, tmp_path, seed=1)
        assert not same(weights(run), weights(whole[1]))

    def test_t2_broken_off_after_a_checkpoint(
        self, dataset: Path, whole: tuple[Path, Run], tmp_path: Path
    ) -> None:
        def stop(step: int) -> None:
            if step == 5:  # two steps behind the checkpoint: they are done again
                raise StoppedError

        with pytest.raises(StoppedError):
            run_toy(dataset, tmp_path, Watcher(after_step=stop))
        watcher = Watcher()
        run, _ = run_toy(dataset, tmp_path, watcher, resume=True)
        assert len(watcher.losses) == 3
        assert same(weights(run), weights(whole[1]))
        assert train_rows(tmp_path) == train_rows(whole[0])
        assert run.progress.best_dice == whole[1].progress.best_dice

    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
    def test_t7_a_signal_finishes_the_step_and_saves(
        self, dataset: Path, whole: tuple[Path, Run], tmp_path: Path, sent: signal.Signals
    ) -> None:
        def send(step: int) -> None:
            if step == 2:
                os.kill(os.getpid(), sent)

        before = signal.getsignal(sent)
        run, stopped = run_toy(dataset, tmp_path, Watcher(after_step=send))
        assert stopped == sent
        assert run.progress.step == 2
        assert signal.getsignal(sent) == before
        run, stopped = run_toy(dataset, tmp_path, resume=True)
        assert stopped is None
        assert same(weights(run), weights(whole[1]))

    def test_stored_models_are_the_runs_weights(self, whole: tuple[Path, Run]) -> None:
        folder, run = whole
        assert same(load_model(folder / "last").state_dict(), weights(run))
        card = read_card(folder / "last")
        assert (card.provenance.steps, card.provenance.num_training_cases) == (6, 2)
        assert card.labels == {0: "background", 1: "liver", 2: "tumor"}
        assert card.preprocess == CT
        assert find_model(folder).name == "best"
        assert stored_config(folder) == toy_config()

    def test_an_occupied_folder_is_refused(self, dataset: Path, whole: tuple[Path, Run]) -> None:
        before = {path: path.read_bytes() for path in (whole[0] / FOLDER).iterdir()}
        with pytest.raises(ConfigError, match=r"a new run needs an empty folder.*--resume"):
            run_toy(dataset, whole[0])
        assert {path: path.read_bytes() for path in (whole[0] / FOLDER).iterdir()} == before

    def test_a_death_before_the_first_state_is_not_in_the_way(
        self, dataset: Path, whole: tuple[Path, Run], tmp_path: Path
    ) -> None:
        """Models are stored before the state: whoever starts again after that must not have to clean up."""

        def stop(_: int) -> None:
            raise StoppedError

        with pytest.raises(StoppedError):
            run_toy(dataset, tmp_path, Watcher(after_validation=stop))
        assert (tmp_path / "best").is_dir()
        run, _ = run_toy(dataset, tmp_path)
        assert same(weights(run), weights(whole[1]))
        shutil.rmtree(tmp_path / FOLDER)
        with pytest.raises(ConfigError, match=r"a new run needs an empty folder.*holds best, last"):
            run_toy(dataset, tmp_path)

    def test_nothing_to_resume(self, dataset: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="without --resume first"):
            run_toy(dataset, tmp_path, resume=True)

    def test_a_damaged_state_is_named_and_the_one_before_taken(
        self, dataset: Path, whole: tuple[Path, Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run_toy(dataset, tmp_path)
        newest = tmp_path / FOLDER / "step_00000006.pt"
        content = newest.read_bytes()
        newest.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
        watcher = Watcher()
        run, _ = run_toy(dataset, tmp_path, watcher, resume=True)
        assert "the state of step 6 is damaged" in caplog.text
        assert len(watcher.losses) == 3  # from step 3 on
        assert same(weights(run), weights(whole[1]))
        for file in (tmp_path / FOLDER).glob("*.pt"):
            file.write_bytes(file.read_bytes()[:500])
        with pytest.raises(CheckpointError, match="the state of a run must be readable; received 2 damaged"):
            run_toy(dataset, tmp_path, resume=True)


@pytest.mark.usefixtures("no_figure")
class TestT5NonFinite:
    """Row T5: a bad step is skipped and counted; weights stay finite."""

    def test_t5_one_bad_loss_is_skipped(
        self, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[dict[str, Tensor]] = []
        real = Run.step

        def step(self: Run, batches: list[Batch]) -> float:
            seen.append(weights(self))
            if len(seen) == 3:
                batches = [(image * float("nan"), label) for image, label in batches]
            return real(self, batches)

        monkeypatch.setattr(Run, "step", step)
        watcher = Watcher()
        run, _ = run_toy(dataset, tmp_path, watcher)
        assert [math.isnan(loss) for loss in watcher.losses] == [False, False, True, False, False, False]
        assert same(seen[2], seen[3])
        assert not same(seen[3], seen[4])
        assert all(value.isfinite().all() for value in run.plain_net.parameters())
        assert [row["loss"] for row in log.read(tmp_path) if row["kind"] == "train"][2] is None

    def test_t5_one_bad_gradient_is_skipped(self, dataset: Path, tmp_path: Path) -> None:
        run, _ = run_toy(dataset, tmp_path, max_steps=1)
        before = weights(run)
        handle = run.plain_net.encoder.norm.weight.register_hook(lambda g: g * float("nan"))
        batch = next(run._batches())
        assert math.isnan(run.step([batch]))
        assert same(weights(run), before)
        handle.remove()
        assert math.isfinite(run.step([batch]))
        assert not same(weights(run), before)

    def test_t5_half_precision_without_a_scaler_skips_it_too(self, dataset: Path, tmp_path: Path) -> None:
        """Only a loss scaler leaves out such steps by itself, and not every device has one."""
        run, _ = run_toy(dataset, tmp_path, max_steps=1)
        run.config = run.config.model_copy(update={"precision": "fp16"})
        assert run.accelerator.scaler is None
        before = weights(run)
        run.plain_net.encoder.norm.weight.register_hook(lambda g: g * float("nan"))
        assert math.isnan(run.step([next(run._batches())]))
        assert same(weights(run), before)

    def test_t5_lost_weights_are_not_stored(self, dataset: Path, tmp_path: Path) -> None:
        run, _ = run_toy(dataset, tmp_path, until=2)
        stored = {path: path.read_bytes() for path in sorted((tmp_path / FOLDER).iterdir())}
        with torch.no_grad():
            run.plain_net.encoder.norm.weight[0] = float("nan")
        with pytest.raises(NumericsError, match=r"must be finite; received encoder\.norm\.weight"):
            run._store_state()
        with pytest.raises(NumericsError):
            run._validate()
        assert {path: path.read_bytes() for path in sorted((tmp_path / FOLDER).iterdir())} == stored
        assert not (tmp_path / "last").exists()

    def test_t5_many_in_a_row_stop_the_run(
        self, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Run, "step", lambda *_: math.nan)
        watcher = Watcher()
        with pytest.raises(NumericsError, match="20 steps in a row") as caught:
            run_toy(dataset, tmp_path, watcher, max_steps=100, validate_every=50)
        assert len(watcher.losses) == 19
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_figure")
def test_a_time_limit_ends_the_run_and_its_schedule(dataset: Path, tmp_path: Path) -> None:
    run, stopped = run_toy(dataset, tmp_path, max_steps=10**6, max_minutes=0.005, validate_every=10**6)
    assert stopped is None
    assert 1 <= run.progress.step < 10**4
    assert run.progress.minutes >= 0.005
    rates = [lr for _, _, lr in train_rows(tmp_path)]
    assert rates[-1] < 0.5 * max(rates)
    assert (tmp_path / "last" / "model.json").is_file()


@pytest.mark.usefixtures("no_figure")
def test_regions_train_with_overlapping_masks(tmp_path: Path) -> None:
    root = write_toy_dataset(
        tmp_path / "data", 2, labels={"background": 0, "liver": [1, 2], "tumor": [2]}, regions=None
    )
    watcher = Watcher()
    run, _ = run_toy(root, tmp_path / "run", watcher, max_steps=2)
    assert run.plain_net.config.num_classes == 2
    assert all(math.isfinite(loss) and 0 < loss <= 1.5 for loss in watcher.losses)
    assert read_card(tmp_path / "run" / "last").regions == {"liver": (1, 2), "tumor": (2,)}
    with pytest.raises(ConfigError, match="which the loss over regions does not have"):
        run_toy(root, tmp_path / "other", loss={"class_weights": "inverse_frequency"})
    assert not (tmp_path / "other").exists()


def test_the_dataset_decides_the_number_of_classes(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.num_classes: the dataset decides.*\(3\); received 7"):
        run_toy(dataset, tmp_path / "run", model={"num_classes": 7})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_learns_one_phantom_by_heart_and_draws_it(tmp_path: Path) -> None:
    root = write_toy_dataset(tmp_path / "data", 1)
    watcher = Watcher()
    quiet = dict.fromkeys(("affine", "rot90", "thin_slab"), 0.0) | {
        "flip": (0, 0, 0), "noise": (0, 0.0), "blur": (0, 1.0), "contrast": (0, 0.5),
        "intensity_scale": (0, 0.1), "intensity_shift": (0, 0.1),
    }  # fmt: skip
    run, _ = run_toy(
        root,
        tmp_path / "run",
        watcher,
        model={"feature_size": 8},  # four take hundreds of steps to tell the two classes apart
        augment=quiet,
        optimizer={"lr": 1e-2, "warmup_steps": 5},
        max_steps=40,
        validate_every=40,
    )
    assert sum(watcher.losses[-5:]) < 0.4 * sum(watcher.losses[:5])
    assert watcher.dice[-1] > 0.9
    assert run.data.validates_on_training
    assert (tmp_path / "run" / "progress.png").read_bytes().startswith(b"\x89PNG")
    card = json.loads((tmp_path / "run" / "best" / "model.json").read_text())
    assert card["provenance"]["validation_dice"] == pytest.approx(watcher.dice[-1])
