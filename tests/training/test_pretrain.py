"""Pre-training runs of a few steps: repeatable, resumable, and able to learn."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.checkpoints.init import load_encoder_init
from sparseg.checkpoints.pretrained import read_encoder
from sparseg.errors import CheckpointError, ConfigError, NumericsError
from sparseg.models.autoencoder import random_mask
from sparseg.models.segmenter import SparseUNETR
from sparseg.training import log
from sparseg.training.monitor import StepInfo
from sparseg.training.pretrain.config import PretrainConfig
from sparseg.training.pretrain.images import open_images
from sparseg.training.pretrain.loop import PretrainRun, mask_generator
from sparseg.training.pretrain.start import pretrain, stored_config
from sparseg.training.stopping import Reason
from training.toy import CT


def toy_config(**changes: Any) -> PretrainConfig:
    """Six steps of the tiny encoder, with everything random that a run can have."""
    values: dict[str, Any] = {
        "preset": "test_tiny",
        "model": {"drop_path": 0.2},
        "preprocess": CT.model_dump(),
        "autoencoder": {"decoder_depth": 1, "decoder_dim": 24},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "batch_size": 2,
        "max_steps": 6,
        "store_every": 3,
    }
    return PretrainConfig.model_validate(values | changes)


class Watcher:
    """A monitor that remembers, and calls back after a step."""

    def __init__(self, after_step: Callable[[int], None] = lambda _: None) -> None:
        self.steps: list[StepInfo] = []
        self.after_step = after_step

    @property
    def losses(self) -> list[float]:
        return [info.loss for info in self.steps]

    def on_step(self, info: StepInfo) -> None:
        self.steps.append(info)
        self.after_step(info.step)


def run_toy(
    dataset: Path, folder: Path, watcher: Watcher | None = None, *, resume: bool = False, **changes: Any
) -> tuple[PretrainRun, Reason, int | None]:
    config = toy_config(**changes)
    return pretrain(*open_images(dataset), folder, config, watcher or Watcher(), resume=resume)


def weights(run: PretrainRun) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.plain_net.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(folder: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["lr"]) for row in log.read(folder)]


class StoppedError(Exception):
    """Ends a run from inside, as a lost connection to the monitor would."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(log, "draw", lambda _: None)
        monkeypatch.setattr(PretrainRun, "draw", lambda _: None)


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PretrainRun]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "draw", lambda _: None)
        patch.setattr(PretrainRun, "draw", lambda _: None)
        folder = tmp_path_factory.mktemp("whole")
        run, reason, received = run_toy(dataset, folder)
    assert (reason, received) == (Reason.DONE, None)
    assert run.progress.step == 6
    return folder, run


def test_t9_the_same_seed_gives_the_same_weights(
    dataset: Path, whole: tuple[Path, PretrainRun], tmp_path: Path
) -> None:
    run, _, _ = run_toy(dataset, tmp_path)
    assert same(weights(run), weights(whole[1]))
    assert rows(tmp_path) == rows(whole[0])


def test_another_seed_gives_others(dataset: Path, whole: tuple[Path, PretrainRun], tmp_path: Path) -> None:
    run, _, _ = run_toy(dataset, tmp_path, seed=1)
    assert not same(weights(run), weights(whole[1]))


def test_t2_broken_off_behind_a_stored_state(
    dataset: Path, whole: tuple[Path, PretrainRun], tmp_path: Path
) -> None:
    def stop(step: int) -> None:
        if step == 5:  # two steps behind the state: they are done again
            raise StoppedError

    with pytest.raises(StoppedError):
        run_toy(dataset, tmp_path, Watcher(stop))
    watcher = Watcher()
    run, _, _ = run_toy(dataset, tmp_path, watcher, resume=True)
    assert len(watcher.losses) == 3
    assert same(weights(run), weights(whole[1]))
    assert rows(tmp_path) == rows(whole[0])


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_t7_a_signal_finishes_the_step_and_saves(
    dataset: Path, whole: tuple[Path, PretrainRun], tmp_path: Path, sent: signal.Signals
) -> None:
    def send(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), sent)

    before = signal.getsignal(sent)
    run, reason, received = run_toy(dataset, tmp_path, Watcher(send))
    assert (reason, received, run.progress.step) == (Reason.SIGNAL, sent, 2)
    assert signal.getsignal(sent) == before
    assert read_encoder(tmp_path)[0].steps == 2
    run, reason, _ = run_toy(dataset, tmp_path, resume=True)
    assert reason is Reason.DONE
    assert same(weights(run), weights(whole[1]))


def test_the_run_folder_holds_the_encoder_and_how_it_came_about(whole: tuple[Path, PretrainRun]) -> None:
    folder, run = whole
    card, encoder = read_encoder(folder)
    assert same(encoder, dict(run.plain_net.encoder.state_dict()))
    assert (card.steps, card.num_cases, card.seed, card.dataset) == (6, 3, 0, "toy")
    assert card.preprocess == CT
    assert card.channels == ("CT",)
    assert card.loss == pytest.approx(sum(loss for _, loss, _ in rows(folder)) / 6)
    assert stored_config(folder) == toy_config()
    names = {path.name for path in folder.iterdir()}
    assert names == {"encoder.safetensors", "pretrain.json", "config.yaml", "log.jsonl", "state"}


def test_a_segmenter_takes_the_encoder(whole: tuple[Path, PretrainRun]) -> None:
    net = SparseUNETR(**{**whole[1].model_config.model_dump(), "num_classes": 4})
    report = load_encoder_init(net, whole[0])
    assert report.dropped == report.resized == ()
    for name, value in whole[1].plain_net.encoder.state_dict().items():
        assert torch.equal(net.encoder.state_dict()[name], value)


def test_an_occupied_folder_is_refused(dataset: Path, whole: tuple[Path, PretrainRun]) -> None:
    with pytest.raises(ConfigError, match=r"a new run needs an empty folder.*--resume"):
        run_toy(dataset, whole[0])


def test_nothing_to_resume(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without --resume first"):
        run_toy(dataset, tmp_path, resume=True)
    with pytest.raises(ConfigError, match="without --resume first"):
        stored_config(tmp_path)


def test_a_longer_schedule_goes_on(dataset: Path, tmp_path: Path, whole: tuple[Path, PretrainRun]) -> None:
    run_toy(dataset, tmp_path)
    run, reason, _ = run_toy(dataset, tmp_path, resume=True)
    assert (run.progress.step, reason) == (6, Reason.DONE)
    run, _, _ = run_toy(dataset, tmp_path, resume=True, max_steps=8)
    assert [step for step, _, _ in rows(tmp_path)] == list(range(1, 9))
    assert rows(tmp_path)[:6] == rows(whole[0])
    assert read_encoder(tmp_path)[0].steps == 8


def test_t5_a_bad_gradient_is_skipped_and_many_end_the_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PretrainRun.step
    seen: list[dict[str, Tensor]] = []

    def step(self: PretrainRun, image: Tensor) -> float:
        seen.append(weights(self))
        return real(self, image * float("nan") if self.progress.step == 2 else image)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainRun, "step", step)
        watcher = Watcher()
        run, _, _ = run_toy(dataset, tmp_path / "a", watcher)
    assert [math.isnan(loss) for loss in watcher.losses] == [False, False, True, False, False, False]
    assert same(seen[2], seen[3])
    assert not same(seen[3], seen[4])
    assert run.progress.skipped == 1
    monkeypatch.setattr(PretrainRun, "step", lambda *_: math.nan)
    with pytest.raises(NumericsError, match="3 steps in a row"):
        run_toy(dataset, tmp_path / "b", max_bad_steps=3)


def test_a_time_limit_ends_the_run_and_its_schedule(dataset: Path, tmp_path: Path) -> None:
    run, reason, _ = run_toy(dataset, tmp_path, max_steps=10**6, max_minutes=0.005, store_every=10**6)
    assert reason is Reason.DONE
    assert 1 <= run.progress.step < 10**4
    rates = [lr for _, _, lr in rows(tmp_path)]
    assert rates[-1] < 0.5 * max(rates)
    assert read_encoder(tmp_path)[0].steps == run.progress.step


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="a CPU alone")
def test_a_cpu_trains_in_fp32_only(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained in fp32; received bf16; --set precision=fp32"):
        run_toy(dataset, tmp_path / "run", precision="bf16")
    assert not (tmp_path / "run").exists()


def test_the_dataset_decides_the_number_of_channels(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.in_channels: the dataset decides.*\(1\); received 3"):
        run_toy(dataset, tmp_path / "run", model={"in_channels": 3})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("length", [8, 27, 64])
def test_masks_do_not_depend_on_how_many_processes_share_a_step(length: int) -> None:
    whole = random_mask(6, length, 0.75, mask_generator(3, 5, skip=0))[1]
    parts = [random_mask(2, length, 0.75, mask_generator(3, 5, skip=2 * r * length))[1] for r in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, random_mask(6, length, 0.75, mask_generator(3, 6, skip=0))[1])


@pytest.mark.slow
def test_learns_phantoms_and_draws_them(dataset: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    run_toy(
        dataset,
        tmp_path,
        watcher,
        autoencoder={"target": "pixels", "decoder_depth": 1, "decoder_dim": 24},
        crops={"intensity_scale": (0, 0), "intensity_shift": (0, 0)},
        optimizer={"lr": 3e-3, "warmup_steps": 5},
        max_steps=80,
        store_every=80,
    )
    assert sum(watcher.losses[-10:]) < 0.5 * sum(watcher.losses[:10])
    for name in ("progress.png", "reconstruction.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
