"""What a run can do besides going through its steps: averaging, accumulating, stopping, explaining."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.checkpoints.folder import load_model, read_card
from sparseg.datasets.facts import CaseFacts
from sparseg.errors import ConfigError, NumericsError, ResourceError
from sparseg.training import log, loop
from sparseg.training.batches import crop_numbers
from sparseg.training.data import open_dataset
from sparseg.training.faults import explain_faults
from sparseg.training.loop import Run
from sparseg.training.network import average_of
from sparseg.training.ranks import seed_step
from sparseg.training.selection import step_draw
from sparseg.training.start import train
from sparseg.training.state import FOLDER, read_progress
from sparseg.training.stopping import Reason, SignalWatch
from training.toy import Watcher, run_toy, toy_config

pytestmark = pytest.mark.usefixtures("no_figure")


def weights(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.plain_net.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    return [row for row in log.read(folder) if row["kind"] == kind]


def test_crop_numbers_of_all_ranks_are_disjoint_and_whole() -> None:
    taken = []
    for rank in range(3):
        numbers = crop_numbers(6, 2, world=3, rank=rank)
        taken += [number for _ in range(4) for number in next(numbers)]
    assert sorted(taken) == list(range(6, 6 + 24))


def test_the_seed_of_a_step_is_its_own() -> None:
    drawn = set()
    for seed in (0, 1):
        for step in range(4):
            for rank in range(2):
                seed_step(seed, step, rank)
                drawn.add(float(torch.rand(())))
    assert len(drawn) == 16


def test_accumulated_batches_are_one_large_batch(dataset: Path, tmp_path: Path) -> None:
    """Without noise and with a loss per crop, two batches of one crop give the gradient of one of two."""
    quiet: dict[str, Any] = {
        "model": {"drop_path": 0.0, "noise_scale": 0.0, "feature_size": 2},
        "loss": {"kind": "dice_ce", "dice_weight": 0.0},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "max_steps": 4,  # later losses tell whether the steps before were the same
        "validate_every": 9,
    }
    one, _ = run_toy(dataset, tmp_path / "one", batch_size=2, **quiet)
    two, _ = run_toy(dataset, tmp_path / "two", batch_size=1, accumulate=2, **quiet)
    assert [row["loss"] for row in rows(tmp_path / "two")] == pytest.approx(
        [row["loss"] for row in rows(tmp_path / "one")], rel=1e-5
    )
    assert two.progress.crops == one.progress.crops == 8


class TestAverage:
    def test_it_is_the_running_mean_that_is_kept(self, dataset: Path, tmp_path: Path) -> None:
        run, _ = run_toy(dataset, tmp_path, ema_decay=0.9)
        assert run.ema is not None
        stored = load_model(tmp_path / "last").state_dict()
        assert same(stored, run.ema.module.state_dict())
        assert not same(stored, weights(run))

    def test_its_arithmetic(self) -> None:
        net = torch.nn.Linear(1, 1, bias=False)
        average = average_of(net, 0.9)
        assert average is not None
        expected = None
        for value in (1.0, 2.0, 5.0):
            with torch.no_grad():
                net.weight.fill_(value)
            average.update_parameters(net)
            # The first update takes the weights as they are.
            expected = value if expected is None else 0.9 * expected + 0.1 * value
        assert float(average.module.weight.detach()) == pytest.approx(expected)
        assert average_of(net, 0.0) is None

    def test_indices_are_copied(self) -> None:
        """In float32 1 - 0.9999 loses digits, so that averages of equal indices came out one less."""
        net = torch.nn.BatchNorm1d(2)
        net.register_buffer("index", torch.arange(3000))
        average = average_of(net, 0.9999)
        assert average is not None
        for mean in (1.0, 2.0):
            net.running_mean.fill_(mean)  # type: ignore[union-attr, operator]
            net.num_batches_tracked.add_(7)  # type: ignore[union-attr, operator]
            average.update_parameters(net)
        assert torch.equal(average.module.index, net.index)
        assert average.module.num_batches_tracked == 14
        assert average.module.running_mean.tolist() == pytest.approx([1.0001, 1.0001])

    def test_a_resumed_average_is_the_uninterrupted_one(self, dataset: Path, tmp_path: Path) -> None:
        whole, _ = run_toy(dataset, tmp_path / "whole", ema_decay=0.9)
        run_toy(dataset, tmp_path / "part", until=2, ema_decay=0.9)
        part, _ = run_toy(dataset, tmp_path / "part", resume=True, ema_decay=0.9)
        assert same(weights(part), weights(whole))
        assert part.ema is not None
        assert whole.ema is not None
        assert same(part.ema.state_dict(), whole.ema.state_dict())


class TestStopping:
    def test_until_a_step_and_on(self, dataset: Path, tmp_path: Path) -> None:
        whole, _ = run_toy(dataset, tmp_path / "whole")
        opened = open_dataset(dataset)
        for until, reason in ((1, Reason.UNTIL), (4, Reason.UNTIL), (9, Reason.DONE)):
            run, why, received = train(
                *opened, tmp_path / "run", toy_config(), Watcher(), resume=until > 1, until=until
            )
            assert (why, received) == (reason, None)
            assert run.progress.step == min(until, 6)
        assert same(weights(run), weights(whole))
        # The schedule was that of the whole run all along.
        assert [row["lr"] for row in rows(tmp_path / "run")] == [
            row["lr"] for row in rows(tmp_path / "whole")
        ]

    def test_a_finished_run_can_be_made_longer(self, dataset: Path, tmp_path: Path) -> None:
        run_toy(dataset, tmp_path, max_steps=2)
        assert read_progress(tmp_path).finished  # type: ignore[union-attr]
        watcher = Watcher()
        run, _ = run_toy(dataset, tmp_path, watcher, resume=True, max_steps=4)
        assert (run.progress.step, len(watcher.losses)) == (4, 2)

    @pytest.mark.parametrize(("until", "max_steps", "validated"), [(4, 4, [2, 4]), (5, 3, [2, 4, 5])])
    def test_a_schedule_made_shorter_ends_where_the_run_stopped(
        self, dataset: Path, tmp_path: Path, until: int, max_steps: int, validated: list[int]
    ) -> None:
        run_toy(dataset, tmp_path, until=until, validate_every=2)
        for _ in range(2):
            watcher = Watcher()
            run_toy(dataset, tmp_path, watcher, resume=True, max_steps=max_steps, validate_every=2)
            assert watcher.losses == []
            progress = read_progress(tmp_path)
            assert progress is not None
            assert (progress.step, progress.finished) == (until, True)
            assert [row["step"] for row in rows(tmp_path, "validation")] == validated
            assert read_card(tmp_path / "last").provenance.steps == until
        run, _ = run_toy(dataset, tmp_path, resume=True, max_steps=6, validate_every=2)
        assert run.progress.step == 6

    def test_patience(self, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sparseg.training.loop.validate", lambda *_, **__: [0.5, 0.5])
        run, why, _ = train(
            *open_dataset(dataset),
            tmp_path,
            toy_config(patience=2, validate_every=1, max_steps=50),
            Watcher(),
        )
        assert why is Reason.PATIENCE
        # The first validation is the best one; two more without improvement end the run.
        assert run.progress.step == 3
        assert run.progress.best_step == 1

    def test_a_run_that_patience_ended_is_done_until_it_is_made_longer(
        self, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sparseg.training.loop.validate", lambda *_, **__: [0.5, 0.5])
        settings = {"patience": 1, "validate_every": 1}
        run_toy(dataset, tmp_path, max_steps=10, **settings)
        before = read_progress(tmp_path)
        assert before is not None
        assert (before.step, before.finished, before.stale_share) == (2, True, 0.2)
        for max_steps in (10, 4):  # no shorter schedule wakes it either
            config = toy_config(max_steps=max_steps, **settings)
            watcher = Watcher()
            _, why, _ = train(*open_dataset(dataset), tmp_path, config, watcher, resume=True)
            assert (why, watcher.losses) == (Reason.PATIENCE, [])
            assert read_progress(tmp_path) == before
        watcher = Watcher()
        run, _ = run_toy(dataset, tmp_path, watcher, resume=True, max_steps=12, patience=2, validate_every=1)
        assert len(watcher.losses) == 2  # patience counts anew
        assert (run.progress.step, run.progress.finished) == (4, True)

    @pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this system")
    def test_t7_the_schedulers_warning_saves_at_once(self, dataset: Path, tmp_path: Path) -> None:
        def warn(step: int) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGUSR1)

        watcher = Watcher(after_step=warn)
        run, received = run_toy(dataset, tmp_path, watcher)
        assert (received, run.progress.step) == (signal.SIGUSR1, 2)
        assert watcher.dice == []  # no validation, which may take longer than the scheduler waits
        assert read_progress(tmp_path).step == 2  # type: ignore[union-attr]


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="a CPU alone")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cpu_trains_in_fp32_only(dataset: Path, tmp_path: Path, precision: str) -> None:
    """Gradients of its convolutions in bf16 reach 1e34, and nothing says so."""
    with pytest.raises(ConfigError, match=f"trained in fp32; received {precision}; --set precision=fp32"):
        run_toy(dataset, tmp_path / "run", precision=precision)
    assert not (tmp_path / "run").exists()


def test_a_signal_counts_once_and_a_later_one_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("sparseg.training.stopping.time.monotonic", lambda: clock[0])
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] = 0.5
        os.kill(os.getpid(), signal.SIGINT)  # from whoever manages the process group: the same wish
        assert watch.received == signal.SIGTERM
        clock[0] = 1.6
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_states_are_stored_between_validations_and_the_last_few_kept(dataset: Path, tmp_path: Path) -> None:
    run_toy(dataset, tmp_path, checkpoint_every=1, validate_every=4, keep_states=3)
    names = sorted(path.name for path in (tmp_path / FOLDER).glob("*.json"))
    assert names == [f"step_{step:08d}.json" for step in (4, 5, 6)]


def test_t5_the_crops_of_bad_steps_are_kept(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "step", lambda *_: math.nan)
    with pytest.raises(NumericsError, match=r"5 steps in a row.*bad_batch_"):
        run_toy(dataset, tmp_path, max_bad_steps=5)
    kept = sorted(tmp_path.glob("bad_batch_*.pt"))
    assert len(kept) == 3
    content = torch.load(kept[0], weights_only=True)
    assert content["images"][0].shape == (2, 1, 16, 16, 16)
    assert content["labels"][0].dtype == torch.int64


def test_lack_of_memory_says_what_to_lower(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. More words.")

    monkeypatch.setattr(Run, "step", fail)
    with pytest.raises(ResourceError, match=r"CUDA out of memory; lower batch_size.*--resume") as caught:
        run_toy(dataset, tmp_path)
    assert caught.value.code == "device-memory"


def test_t4_the_death_of_a_loader_worker_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"worker .*killed by signal.*num_workers"),
        explain_faults(tmp_path),
    ):
        raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="something else"), explain_faults(tmp_path):
        raise RuntimeError("something else")


def test_the_manifest_says_what_a_run_was_made_from(dataset: Path, tmp_path: Path) -> None:
    _, facts = open_dataset(dataset)
    run_toy(dataset, tmp_path, max_steps=1)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in torch.__version__
    keys = [fact.content_key for fact in facts]
    assert manifest["dataset"]["cases"] == dict(zip(("case0", "case1", "case2"), keys, strict=True))
    assert all(isinstance(fact, CaseFacts) for fact in facts)
    before = manifest["config_sha256"]
    run_toy(dataset, tmp_path, resume=True, max_steps=2)
    assert json.loads((tmp_path / "manifest.json").read_text())["config_sha256"] != before


def test_selection_is_logged_and_can_be_supervised(dataset: Path, tmp_path: Path) -> None:
    settings = {"score_weight": 0.5, "warmup_share": 0.5, "protect_min_patches": 4, "temperature_end": 0.1}
    run, _ = run_toy(dataset, tmp_path, selection=settings)
    (first,) = [row for row in rows(tmp_path) if "selection" in row]
    assert first["step"] == 1
    stats = first["selection"]
    assert stats["tokens/0"] == 64
    assert stats["tokens/3"] == 64  # the warm-up begins without pruning
    assert stats["kept/3/foreground"] == 1.0
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path))
    assert run.progress.skipped == 0


def test_scores_of_the_image_are_taught_without_being_asked_for(dataset: Path, tmp_path: Path) -> None:
    losses = {}
    for name, settings in (("default", {}), ("one", {"score_weight": 1.0}), ("none", {"score_weight": 0.0})):
        run_toy(dataset, tmp_path / name, selection=settings, model={"scoring": "image"}, max_steps=1)
        losses[name] = rows(tmp_path / name)[0]["loss"]
    assert losses["default"] > losses["none"] + 0.1
    foreground = {"score_weight": 1.0, "score_target": "foreground"}
    run_toy(dataset, tmp_path / "spelt", selection=foreground, model={"scoring": "image"}, max_steps=1)
    assert losses["default"] == losses["one"] == rows(tmp_path / "spelt")[0]["loss"]


def test_elastic_steps_keep_different_numbers_of_tokens(dataset: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "SELECTION_EVERY", 1)
    ratios = (0.25, 0.5, 1.0)
    run, _ = run_toy(dataset, tmp_path, selection={"elastic_keep": ratios}, max_steps=8)
    found = [row["selection"]["tokens/1"] for row in rows(tmp_path) if "selection" in row]
    wanted = [64 * ratios[int(step_draw(run.config.seed, step) * 3)] for step in range(8)]
    assert found == wanted
    assert len(set(found)) == 3


def test_deep_supervision_and_recomputation_train(dataset: Path, tmp_path: Path) -> None:
    model = {"drop_path": 0.2, "noise_scale": 0.5, "feature_size": 2, "deep_supervision": 2}
    plain, _ = run_toy(dataset, tmp_path / "plain", model=model, max_steps=3)
    again, _ = run_toy(dataset, tmp_path / "again", model=model, max_steps=3, activation_checkpointing=True)
    assert same(weights(again), weights(plain))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings
def test_a_compiled_run_learns_the_same(dataset: Path, tmp_path: Path) -> None:
    plain, _ = run_toy(dataset, tmp_path / "plain", max_steps=2)
    compiled, _ = run_toy(dataset, tmp_path / "compiled", max_steps=2, compile="blocks")
    assert list(weights(compiled)) == list(weights(plain))
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("plain", "compiled")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert isinstance(compiled.plain_net.encoder.blocks[0]._compiled_call_impl, Callable)
