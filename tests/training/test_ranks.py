"""Runs of two gloo processes against runs of one: same losses, same scores, states for either."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseg.checkpoints.folder import load_model
from sparseg.errors import ConfigError
from sparseg.training import log, ranks
from sparseg.training.loop import Run
from sparseg.training.start import is_restart
from sparseg.training.stopping import SignalWatch
from training import rank_checks
from training.processes import Launch, newest_state, quiet_config, rows, same_tensors, train_with_two
from training.toy import Watcher, run_toy, write_toy_dataset


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases of which two validate, one for each process."""
    root = write_toy_dataset(tmp_path_factory.mktemp("cases") / "data", 4)
    folds = [{"train": ["case0", "case1"], "val": ["case2", "case3"]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    return root


@pytest.fixture(scope="module")
def one(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with batches of four."""
    run = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "draw", lambda _: None)
        # The caches of a fixture of the module and of its tests are not the same folder.
        patch.setenv("XDG_CACHE_HOME", str(run.parent / "cache"))
        run_toy(cases, run, **quiet_config(batch_size=4).model_dump())
    return run


def assert_same_as_one(run: Path, one: Path) -> None:
    """Losses to 1e-5 over 20 steps, validation to the digits that rounding leaves."""
    losses, expected = ([row["loss"] for row in rows(folder)] for folder in (run, one))
    assert len(losses) == 20
    assert losses == pytest.approx(expected, abs=1e-5)
    assert max(losses) - min(losses) > 0.01  # it learns; equal losses would say little otherwise
    for row, other in zip(rows(run, "validation"), rows(one, "validation"), strict=True):
        assert list(row["dice"].values()) == pytest.approx(list(other["dice"].values()), abs=2e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_one_with_the_same_global_batch(
    cases: Path, one: Path, tmp_path: Path, strategy: str
) -> None:
    run = tmp_path / "run"
    launch = train_with_two(cases, run, quiet_config(batch_size=2, strategy=strategy))
    assert launch.wait() == 0, launch.text
    assert_same_as_one(run, one)
    # Only the main process speaks.
    assert launch.text.count("preparing case0") == 1
    assert launch.text.count("20 steps in") == 1
    # Whole tensors under the names that one process uses: it loads them, and goes on.
    state, expected = newest_state(run), newest_state(one)
    assert state["model"].keys() == expected["model"].keys()
    moments, others = state["optimizer"]["state"], expected["optimizer"]["state"]
    assert {n: m["exp_avg"].shape for n, m in moments.items()} == {
        n: m["exp_avg"].shape for n, m in others.items()
    }
    assert load_model(run / "last").state_dict().keys() == state["model"].keys()
    watcher = Watcher()
    again, _ = run_toy(
        cases, run, watcher, resume=True, **quiet_config(strategy=strategy, max_steps=22).model_dump()
    )
    assert (again.progress.step, again.progress.crops) == (22, 20 * 4 + 2 * 2)
    assert all(loss < max(row["loss"] for row in rows(one)) for loss in watcher.losses)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figure")
def test_what_processes_share_and_wait_for(cases: Path, one: Path, tmp_path: Path) -> None:
    shorter = tmp_path / "run"
    run_toy(cases, shorter, until=5, **quiet_config(batch_size=4).model_dump())
    output = tmp_path / "report.json"
    launch = Launch([rank_checks.__file__, cases, shorter, output], tmp_path / "work")
    assert launch.wait() == 0, launch.text
    reports: list[dict[str, Any]] = json.loads(output.read_text())
    for report in reports:
        assert report["world"] == 2
        for name in ("dice", "dice_ce", "weighted", "without_background"):
            assert report[name]["loss"] < 1e-12, name
            assert report[name]["gradient"] < 1e-12, name
        assert report["sum"] == 3.0
        assert report["missing"] == [0, 0, 0, 0]
    assert reports[0]["dice"]["mine"] == reports[1]["dice"]["mine"]
    (first, _, end), (second, begun, _) = reports[0]["turns"]
    assert (first, second) == (0, 1)
    assert end <= begun
    assert [report["failures"] for report in reports] == [
        ["mine", "process 1 failed"],
        ["process 0 failed", "mine"],
    ]
    # A run of one process went on with shared-out weights exactly where the uninterrupted one went.
    for report in reports:
        assert (report["sharded"]["step"], report["sharded"]["crops"]) == (6, 24)
        shared, by_itself = report["sharded"]["validation"]
        assert shared == by_itself
    assert reports[0]["sharded"]["validation"] == reports[1]["sharded"]["validation"]
    assert rows(shorter)[5]["loss"] == pytest.approx(rows(one)[5]["loss"], abs=1e-5)
    state = newest_state(shorter)["optimizer"]["state"]
    assert all(float(moments["step"]) == 6 for moments in state.values())


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_at_one_step(cases: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch = train_with_two(cases, run, quiet_config(max_steps=10**5, validate_every=10**5, num_workers=1))
    launch.wait_for_step(run, 3)
    os.kill(launch.pid_of(1), signal.SIGTERM)
    assert launch.wait(60) != 0
    assert "stopped early: a signal came; go on with: torchrun --nproc-per-node 2 -m sparseg" in launch.text
    codes = re.findall(r"exitcode  : (\d+)", launch.text)
    assert codes
    assert set(codes) <= {"143", "15"}
    progress = newest_state(run)["progress"]
    assert progress["step"] == rows(run)[-1]["step"]
    assert progress["crops"] == 4 * progress["step"]


@pytest.mark.slow
def test_a_bad_dataset_is_told_once_and_ends_all(tmp_path: Path) -> None:
    launch = train_with_two(tmp_path / "nothing", tmp_path / "run", quiet_config())
    assert launch.wait(60) != 0
    assert launch.text.count("error: ") == 1
    assert "nothing" in launch.text.split("error: ")[1].splitlines()[0]
    assert "process 1: error" not in launch.text
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_figure")
class TestOneProcess:
    def test_everything_is_what_it_was(self) -> None:
        assert (ranks.world(), ranks.rank(), ranks.launch_command()) == (1, 0, "")
        assert ranks.of_main_process(lambda: 3) == 3
        assert ranks.in_turns(lambda: 4) == 4
        assert ranks.gather_from_all(5) == [5]
        value = torch.tensor(2.0)
        assert ranks.sum_over_ranks(value) is value
        with ranks.joined():
            ranks.wait_for_all()

    def test_errors_are_not_swallowed(self) -> None:
        with pytest.raises(RuntimeError, match="gloo"), ranks.joined():
            raise RuntimeError("gloo is a word")

    def test_fsdp_is_refused_where_it_cannot_work(self, dataset: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"strategy: strategy fsdp goes with.*ema_decay 0.9;.*ddp"):
            run_toy(dataset, tmp_path, strategy="fsdp", ema_decay=0.9)

    def test_fsdp_of_one_process_is_plain(self, dataset: Path, tmp_path: Path) -> None:
        runs: list[Run] = []
        for strategy in ("ddp", "fsdp"):
            run, _ = run_toy(dataset, tmp_path / strategy, strategy=strategy, max_steps=2)
            runs.append(run)
        assert same_tensors(*(run.plain_net.state_dict() for run in runs))

    def test_a_restart_resumes_only_the_run_of_its_own_command(
        self, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        assert not is_restart(tmp_path)
        run_toy(dataset, tmp_path, max_steps=1)
        assert is_restart(tmp_path)
        monkeypatch.setattr("sys.argv", ["sparseg", "train", "another"])
        assert not is_restart(tmp_path)
        monkeypatch.undo()
        assert not is_restart(tmp_path)

    def test_doubled_signals_count_once_where_launchers_double_them(self) -> None:
        with SignalWatch(second_acts=False) as watch:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        assert watch.received == signal.SIGTERM
