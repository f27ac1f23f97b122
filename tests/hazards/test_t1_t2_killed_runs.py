"""Rows T1 and T2: a run killed again and again, at any moment, ends with the weights of one left alone."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from pathlib import Path

import pytest

from sparseg.training import log
from sparseg.training.state import has_state, load_state
from training.toy import run_toy, write_toy_dataset

from .figures import Figure, rounds

# A run long enough to be killed 200 times would take an hour; that row is T1 of test_t1_t3_storage.py.
ROUNDS = min(rounds(5), 20)
# Long enough that no run of the table's 20 rounds is done before it has been killed as often as it shall be.
SETTINGS = {"max_steps": 12 * ROUNDS, "validate_every": 10, "checkpoint_every": 1, "ema_decay": 0.9}


def run_and_kill(dataset: Path, folder: Path, seconds: float) -> bool:
    """Go on with a run in a process of its own and kill it after a while; True if it was done before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads; the child only trains
        child = os.fork()
    if child == 0:
        code = 1
        try:
            run_toy(dataset, folder, resume=has_state(folder), **SETTINGS)
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    return False


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_t1_t2_killed_at_random_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    """Many kills before the run is let to its end."""
    monkeypatch.setattr(log, "draw", lambda _: None)
    dataset = write_toy_dataset(tmp_path / "data")
    run_toy(dataset, tmp_path / "whole", **SETTINGS)
    times, kills = random.Random(0), 0
    folder = tmp_path / "killed"
    while kills < ROUNDS:
        # Some kills come while the run is still starting, most within its steps and saves.
        assert not run_and_kill(dataset, folder, times.uniform(0.3, 1.5)), kills
        kills += 1
    assert run_and_kill(dataset, folder, 300.0)
    ours, theirs = load_state(folder), load_state(tmp_path / "whole")
    assert ours.progress.model_copy(update={"minutes": 0.0}) == theirs.progress.model_copy(
        update={"minutes": 0.0}
    )
    for name in ("model", "ema"):
        one, two = getattr(ours, name), getattr(theirs, name)
        assert one.keys() == two.keys()
        difference = max(float((one[key].double() - two[key].double()).abs().max()) for key in one)
        figure("T2", f"largest difference of the {name} after {ROUNDS} kills", difference, limit=0)
        assert difference == 0, name
    assert (folder / "last/weights.safetensors").read_bytes() == (
        tmp_path / "whole/last/weights.safetensors"
    ).read_bytes()
    losses = [
        [(row["step"], row["loss"]) for row in log.read(place) if row["kind"] == "train"]
        for place in (folder, tmp_path / "whole")
    ]
    assert losses[0] == losses[1]
