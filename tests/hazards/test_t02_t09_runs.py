"""Rows T2, T5, T7 and T9 as the table words them. `make test` runs shorter ones of them in tests/training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest
import torch

from sparseg.checkpoints.folder import load_model
from sparseg.training import log
from sparseg.training.batches import Batch
from sparseg.training.loop import Run
from sparseg.training.state import has_state, load_state, read_progress
from training.toy import Watcher, run_toy, write_toy_dataset

from .figures import Figure, rounds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(rounds(1) == 1, reason="takes minutes: part of make hazards"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals"),
]


@pytest.fixture(autouse=True)
def _no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw", lambda _: None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("data") / "toy")


def largest_difference(one: Path, two: Path) -> float:
    """Of all weights, averages and optimiser tensors of two runs' states."""
    ours, theirs = load_state(one), load_state(two)
    pairs = [(ours.model, theirs.model), (ours.ema, theirs.ema)]
    worst = 0.0
    for first, second in pairs:
        assert first.keys() == second.keys()
        worst = max([worst, *(float((first[k].double() - second[k].double()).abs().max()) for k in first)])
    return worst


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in log.read(folder) if row["kind"] == "train"]


def die_after_17(step: int) -> None:
    """The state of a step is stored after its monitor was told."""
    if step == 18:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 2])
def test_t2_40_steps_against_17_a_kill_and_23(
    dataset: Path, tmp_path: Path, figure: Figure, workers: int
) -> None:
    settings = {"max_steps": 40, "validate_every": 20, "checkpoint_every": 1, "ema_decay": 0.9}
    settings["num_workers"] = workers
    run_toy(dataset, tmp_path / "whole", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads; the child only trains
        child = os.fork()
    if child == 0:
        try:
            die = Watcher(
                after_step=lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 18 else None
            )
            run_toy(dataset, tmp_path / "run", die, **settings)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert read_progress(tmp_path / "run").step in (17, 18)  # type: ignore[union-attr]
    run_toy(dataset, tmp_path / "run", resume=True, **settings)
    difference = largest_difference(tmp_path / "run", tmp_path / "whole")
    figure("T2", "largest difference after 17 steps, kill, 23 steps", difference, limit=0)
    assert difference == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("at", [1, 3, 6])
def test_t5_a_nan_gradient_reaches_no_saved_weight(
    dataset: Path, tmp_path: Path, figure: Figure, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real, calls = Run.step, []

    def step(run: Run, batches: list[Batch]) -> float:
        calls.append(1)
        weight = run.plain_net.encoder.norm.weight
        handle = weight.register_hook(lambda g: g * float("nan")) if len(calls) == at else None
        loss = real(run, batches)
        if handle is not None:
            handle.remove()
        return loss

    monkeypatch.setattr(Run, "step", step)
    run, _ = run_toy(dataset, tmp_path, ema_decay=0.9)
    stored = [*load_model(tmp_path / "last").parameters(), *load_state(tmp_path).model.values()]
    bad = sum(not bool(torch.isfinite(value).all()) for value in stored)
    figure("T5", "saved tensors with NaN", bad, of=len(stored))
    assert bad == 0
    assert run.progress.skipped == 1


def test_t9_the_same_seed_twice(dataset: Path, tmp_path: Path, figure: Figure) -> None:
    for name in ("one", "two"):
        run_toy(dataset, tmp_path / name, max_steps=20, ema_decay=0.9)
    difference = largest_difference(tmp_path / "one", tmp_path / "two")
    figure("T9", "largest difference of the weights", difference, limit=0)
    assert difference == 0
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def started(dataset: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """Start a run with a loader worker from the command line, and wait for its first states."""
    command = [sys.executable, "-m", "sparseg", "train", str(dataset), "--out", str(run)]
    command += ["--preset", "test_tiny", "--max-steps", "100000", *more]
    for setting in ("num_workers=1", "batch_size=1", "checkpoint_every=1", "validate_every=100000"):
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (has_state(run) and logged(run) >= 3) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def logged(run: Path) -> int:
    """The last step in the log; a line that is being written is none yet."""
    if not (run / "log.jsonl").is_file():
        return 0
    lines = [
        line for line in (run / "log.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")
    ]
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 0), (None, 0)]
)
def test_t7_a_signal_or_the_time_limit_ends_a_run_in_good_order(
    dataset: Path, tmp_path: Path, figure: Figure, sent: signal.Signals | None, code: int
) -> None:
    process = started(dataset, tmp_path / "run", *(("--max-minutes", "0.1") if sent is None else ()))
    children = psutil.Process(process.pid).children(recursive=True)
    if sent is not None:
        process.send_signal(sent)
    _, errors = process.communicate(timeout=120)
    _, alive = psutil.wait_procs(children, timeout=10)
    lost = logged(tmp_path / "run") - read_progress(tmp_path / "run").step  # type: ignore[union-attr]
    figure("T7", "ends with an orphan", int(bool(alive)), of=1)
    figure("T7", "steps lost", lost, limit=1, unit="steps")
    assert children
    assert alive == []
    assert lost <= 1
    assert process.returncode == code, errors


def test_t7_the_second_ctrl_c_ends_at_once(dataset: Path, tmp_path: Path, figure: Figure) -> None:
    process = started(dataset, tmp_path / "run")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=10)
    figure("T7", "ends with an orphan", int(bool(alive)), of=1)
    figure("T7", "time to the end after the second Ctrl-C", time.monotonic() - asked, limit=30, unit="s")
    assert alive == []
    # While it ends, Python hands the signal on to the system; a shell says 130 to both.
    assert process.returncode in (130, -signal.SIGINT)
