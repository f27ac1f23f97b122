"""Row T4: a loader worker that the system kills ends the run soon; the text names worker and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from sparseg.errors import ResourceError
from sparseg.training.faults import explain_faults
from sparseg.training.state import Progress, State, has_state, read_progress, save_state
from training.toy import write_toy_dataset

from .figures import Figure


def test_t4_a_worker_that_dies_while_the_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's signal handler raises at whatever line runs: it is not the disk that is to blame."""

    def dies(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    save_state(tmp_path, State(Progress(step=1), {}, {}))
    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(ResourceError) as caught, explain_faults(tmp_path):
        save_state(tmp_path, State(Progress(step=2), {}, {}))
    assert caught.value.code == "worker-killed"
    assert "pid 7" in str(caught.value)
    left = read_progress(tmp_path)
    assert left is not None
    assert left.step == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_t4_a_killed_loader_worker(tmp_path: Path, figure: Figure) -> None:
    dataset, run = write_toy_dataset(tmp_path / "data"), tmp_path / "run"
    command = [sys.executable, "-m", "sparseg", "train", str(dataset), "--out", str(run)]
    command += ["--preset", "test_tiny", "--max-steps", "100000"]
    for setting in ("num_workers=1", "batch_size=1", "checkpoint_every=2", "validate_every=100000"):
        command += ["--set", setting]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        deadline = time.monotonic() + 120
        while not has_state(run) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children(recursive=True)
        for worker in workers:
            worker.kill()
        killed = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert workers, errors
    seconds = time.monotonic() - killed
    figure("T4", "time to the end of the run", seconds, limit=30, unit="s")
    assert seconds < 30
    assert process.returncode == 1, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "processes that cut crops must stay alive" in last
    assert "memory" in last
    assert "num_workers" in last
    assert "--resume" in last
    assert has_state(run)
