"""`sparseg predict` over many cases as users start it: real processes, signals, torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from predict.batch_tools import write_cases
from sparseg.cli.predict_progress import TimeLeft
from training.processes import Launch


def start(model, folder, *more):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "sparseg", "predict", "in", "--model", str(model), "--out", "out"]
    command += ["--no-report", *more]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process, seconds=120):
    """Wait for a process: (exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def rows(folder):
    return json.loads((folder / "out" / "report.json").read_text())["cases"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_cleanly_and_resume_goes_on(sparseg, tmp_path, model_folder, number, code, word):
    cases = write_cases(tmp_path / "in", 60)
    process = start(model_folder, tmp_path)
    first = tmp_path / "out" / "report" / "case_000.json"
    end = time.monotonic() + 90
    while not first.exists():
        assert process.poll() is None, finished(process)
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(number)
    returned, out, err = finished(process)
    assert (returned, err.splitlines()[-1]) == (code, f"error: {word}; files already complete are kept")
    # The signal may come between the labels of a case and its row, or between its row and its line.
    names = [case.name for case in cases]
    printed = [line.partition(":")[0] for line in out.splitlines()]
    done = [row["case"] for row in rows(tmp_path)]
    labels = sorted(path.name.removesuffix(".nii.gz") for path in (tmp_path / "out").glob("*.nii.gz"))
    assert sorted(path.name for path in (tmp_path / "out" / "report").iterdir()) == [
        f"{n}.json" for n in done
    ]
    assert 1 <= len(done) < len(cases)
    for some, more in ((printed, done), (done, labels)):
        assert some == names[: len(some)]
        assert more in (some, names[: len(some) + 1])
    options = ("--model", model_folder, "--out", tmp_path / "out", "--resume", "--no-report")
    outcome = sparseg("predict", tmp_path / "in", *options)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("(reused)") == len(done)
    assert [row["status"] for row in rows(tmp_path)] == ["ok"] * len(cases)


@pytest.mark.slow
def test_torchrun_gives_each_process_its_share_and_a_bad_case_costs_no_other(tmp_path, model_folder):
    """All cases of the first process are bad: it is done first, with an exit code that ends all others."""
    cases = write_cases(tmp_path / "in", 12)
    for case in cases[::2]:
        case.image.write_bytes(b"")
    arguments = ["-m", "sparseg", "predict", "in", "--model", model_folder, "--out", "out", "--no-report"]
    launch = Launch(arguments, tmp_path)
    assert launch.wait() == 1
    assert [(row["case"], row["status"]) for row in rows(tmp_path)] == [
        (case.name, "error" if number % 2 == 0 else "ok") for number, case in enumerate(cases)
    ]
    assert all(case.output.is_file() for case in cases[1::2])
    assert launch.text.count("of 6") == 6
    assert [path.name for path in (tmp_path / "out" / "report").iterdir() if path.suffix != ".json"] == []


def test_a_shard_of_the_command(sparseg, model_folder, tmp_path):
    write_cases(tmp_path / "in", 3)
    options = ("--model", model_folder, "--out", tmp_path / "out", "--device", "cpu", "--no-report")
    assert sparseg("predict", tmp_path / "in", *options, "--shard", "2/2").code == 0
    assert [row["case"] for row in rows(tmp_path)] == ["case_001"]
    outcome = sparseg("predict", tmp_path / "in", *options, "--shard", "1/2")
    assert [line.partition(":")[0] for line in outcome.out.splitlines()] == ["case_000", "case_002"]
    assert len(rows(tmp_path)) == 3
    sparseg("predict", tmp_path / "in", *options, "--shard", "3/2").refused("--shard", "'3/2'")


def test_time_left_is_the_mean_of_the_cases_worked_on():
    now = [0.0]
    clock = TimeLeft(10, lambda: now[0])
    clock.count(worked=False)
    assert clock.shown == "1 of 10"
    now[0] = 40.0
    clock.count(worked=True)
    assert clock.shown == "2 of 10, 5 min left"
    now[0] = 60.0
    clock.count(worked=True)
    assert clock.shown == "3 of 10, 4 min left"
    now[0] = 3600.0
    for _ in range(4):
        clock.count(worked=True)
    assert clock.shown == "7 of 10, 30 min left"
    now[0] = 36000.0
    clock.count(worked=False)
    assert clock.shown == "8 of 10, 3 h 20 min left"
    clock.count(worked=False)
    clock.count(worked=False)
    assert clock.shown == "10 of 10"
