"""Training runs as child processes, with small programs in their place."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from sparseg.crossval import children
from sparseg.crossval.children import End, FoldJob, Outcome, become, make_slots, run_folds, train_command
from sparseg.errors import ConfigError

# Each program finds its run folder in argv[1]; `finish` leaves what a finished run leaves.
HEAD = """
import json, os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
def finish(finished=True):
    (run / "state").mkdir(parents=True, exist_ok=True)
    (run / "state" / "step_00000002.json").write_text(
        json.dumps({"progress": {"step": 2, "finished": finished}}))
"""
TRAIN = HEAD + "time.sleep(0.2); finish()\n"
FAIL = HEAD + "print('error: no room; free some\\nlast line'); sys.exit(2)\n"
CRASH = HEAD + "os.kill(os.getpid(), signal.SIGKILL)\n"
UNFINISHED = HEAD + "finish(False)\n"
WAIT = (
    HEAD
    + """
def stop(number, frame):
    finish(False)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
run.mkdir(parents=True)
(run / "ready").touch()
time.sleep(30)
"""
)


class Watcher:
    """Remembers what it is told."""

    def __init__(self):
        self.ends, self.steps = [], []

    def on_status(self, status):
        self.steps.append((status.fold, status.step))

    def on_end(self, outcome):
        self.ends.append(outcome.fold)


@pytest.fixture
def job(tmp_path):
    def make(fold, program):
        run = tmp_path / f"fold_{fold}"
        command = (sys.executable, "-I", "-c", program, str(run))
        return FoldJob(fold, command, run, tmp_path / "logs" / f"fold_{fold}.txt")

    return make


def spans(tmp_path, count):
    return [json.loads((tmp_path / f"fold_{fold}" / "span").read_text()) for fold in range(count)]


def test_all_folds_run_a_few_at_once_each_in_its_slot(job, tmp_path):
    program = HEAD + (
        "begun = time.time(); time.sleep(0.3); finish()\n"
        "(run / 'span').write_text(json.dumps([begun, time.time(), os.environ['CUDA_VISIBLE_DEVICES']]))\n"
    )
    watcher = Watcher()
    slots = make_slots(2, ["4", "7"])
    outcomes, received = run_folds([job(fold, program) for fold in range(4)], slots, watcher)
    assert outcomes == [Outcome(fold, End.DONE) for fold in range(4)]
    assert received is None
    assert sorted(watcher.ends) == [0, 1, 2, 3]
    found = spans(tmp_path, 4)
    for begun, _, device in found:
        at_work = [other for other in found if other[0] <= begun < other[1]]
        assert len(at_work) <= 2
        assert [other[2] for other in at_work].count(device) == 1
    assert {device for _, _, device in found} == {"4", "7"}


def test_a_failed_fold_does_not_stop_the_others(job):
    jobs = [job(0, FAIL), job(1, CRASH), job(2, TRAIN), job(3, UNFINISHED)]
    outcomes, received = run_folds(jobs, make_slots(1), Watcher())
    assert received is None
    assert outcomes == [
        Outcome(0, End.FAILED, "no room; free some"),
        Outcome(1, End.FAILED, "killed by SIGKILL; is the memory enough?"),
        Outcome(2, End.DONE),
        Outcome(3, End.STOPPED),
    ]
    assert jobs[0].log.read_text() == "error: no room; free some\nlast line\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_children_and_starts_no_more(job, tmp_path, number):
    def send():
        while not (tmp_path / "fold_0" / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=send)
    thread.start()
    outcomes, received = run_folds([job(0, WAIT), job(1, TRAIN)], make_slots(1), Watcher())
    thread.join()
    assert received == number
    assert outcomes == [Outcome(0, End.STOPPED), Outcome(1, End.WAITING)]
    assert (tmp_path / "fold_0" / "state").is_dir()  # it had the time to save
    assert not (tmp_path / "fold_1").exists()
    assert signal.getsignal(number) is before


def test_a_fold_is_trained_by_one_process_at_a_time(job):
    """The lock is the child's: it holds although the parent gave up its own handle."""
    first = children._Child(job(0, WAIT), {})
    try:
        outcomes, _ = run_folds([job(0, TRAIN)], make_slots(1), Watcher())
        with pytest.raises(ConfigError, match="another process is training this fold"):
            become(job(0, TRAIN))
    finally:
        first.process.kill()
        first.process.wait()
    assert outcomes == [Outcome(0, End.FAILED, "another process is training this fold")]
    assert run_folds([job(0, TRAIN)], make_slots(1), Watcher())[0] == [Outcome(0, End.DONE)]


def test_become_keeps_the_lock_over_the_exchange(job, monkeypatch):
    called = []
    monkeypatch.setattr(os, "execv", lambda *arguments: called.append(arguments))
    wanted = job(0, TRAIN)
    become(wanted)
    assert called == [(wanted.command[0], wanted.command)]
    assert children._lock(wanted.log.with_suffix(".lock")) is None


def test_commands_of_a_start_and_a_resumption():
    where = {"config": Path("cv/config.yaml"), "splits": Path("cv/splits.json")}
    start = train_command(Path("data"), Path("cv/fold_2"), 2, resume=False, more=["--skip-bad"], **where)
    assert start[0] == sys.executable
    assert " ".join(start[1:]) == (
        "-m sparseg train data --out cv/fold_2 "
        "--fold 2 --splits cv/splits.json --config cv/config.yaml --skip-bad"
    )
    again = train_command(Path("data"), Path("cv/fold_2"), 2, resume=True, more=["--skip-bad"], **where)
    assert " ".join(again[1:]) == "-m sparseg train data --out cv/fold_2 --resume --skip-bad"


def test_slots_share_devices_and_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert make_slots(1) == [{}]
    assert make_slots(1, ["3"]) == [{"CUDA_VISIBLE_DEVICES": "3"}]
    devices = [slot["CUDA_VISIBLE_DEVICES"] for slot in make_slots(3, ["0", "1"])]
    assert devices == ["0", "1", "0"]
    assert make_slots(3) == [{"OMP_NUM_THREADS": "4"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert make_slots(3) == [{}] * 3
