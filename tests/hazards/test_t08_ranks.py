"""Row T8: a process that dies takes the others with it in time, and a restart goes on to the same end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from training.processes import newest_state, rows, same_tensors, train_with_two
from training.toy import toy_config, write_toy_dataset

from .figures import Figure

BAR_SECONDS = 60


@pytest.mark.slow
def test_t8_a_killed_process_ends_all_and_restarts_go_on_bit_for_bit(tmp_path: Path, figure: Figure) -> None:
    dataset = write_toy_dataset(tmp_path / "data")
    config = toy_config(max_steps=40, validate_every=20, checkpoint_every=3)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_with_two(dataset, whole, config).wait() == 0

    launch = train_with_two(dataset, run, config)
    launch.wait_for_step(run, 8)
    os.kill(launch.pid_of(1), signal.SIGKILL)
    killed = time.monotonic()
    assert launch.wait(BAR_SECONDS) != 0
    seconds = time.monotonic() - killed
    figure("T8", "time to the end of all processes", seconds, limit=BAR_SECONDS, unit="s")
    assert seconds < BAR_SECONDS
    assert "all processes of a run must stay alive" in launch.text
    assert newest_state(run)["progress"]["step"] < 40

    # By hand with --resume, then by torchrun itself.
    launch = train_with_two(dataset, run, config, "--resume", options=["--max-restarts", "1"])
    launch.wait_for_step(run, 24)
    os.kill(launch.pid_of(0), signal.SIGKILL)
    assert launch.wait() == 0, launch.text
    assert launch.text.count("40 steps in") == 1
    same = same_tensors(newest_state(run)["model"], newest_state(whole)["model"])
    figure("T8", "restarted runs with other weights", int(not same), of=1)
    assert same
    assert same_tensors(newest_state(run)["optimizer"], newest_state(whole)["optimizer"])
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in rows(whole)]
    assert [row["dice"] for row in rows(run, "validation")] == [
        row["dice"] for row in rows(whole, "validation")
    ]
