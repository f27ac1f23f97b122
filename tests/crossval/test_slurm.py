"""Folds as Slurm jobs: options, what submitit is told, and the batch script run under bash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from sparseg.crossval import slurm
from sparseg.crossval.slurm import FoldTask, minutes, parse_options, script, submit, submitit_parameters
from sparseg.errors import ConfigError, MissingExtraError, SparsegError

# Saves on SIGTERM, as training does.
SAVING = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(number, frame):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(folder / f"started_{sys.argv[-1]}").touch()
time.sleep(20)
"""


def wait_for(path):
    for _ in range(500):
        if path.exists():
            return
        time.sleep(0.02)
    pytest.fail(f"{path.name} never came")


def test_options():
    text = "partition=gpu,time=1-02:00,gpus=2,mem=64G,constraint=a100,,h100,gres-flags=enforce-binding"
    assert parse_options(text) == {
        "partition": "gpu",
        "time": "1-02:00",
        "gpus": "2",
        "mem": "64G",
        "constraint": "a100,h100",
        "gres-flags": "enforce-binding",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "name=value"),
        ("partition=", "name=value"),
        ("mem=1G,mem=2G", "each once"),
        ("Partition=gpu", "name=value"),
        ("mem=1G\n#SBATCH --wrap=x", "name=value"),
        ("array=0-9", "decided by sparseg"),
        ("gpus=a100:1", "whole number"),
        ("time=soon", "time limit"),
        ("time=0", "not be zero"),
    ],
)
def test_wrong_options(text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parse_options(text)
    assert caught.value.code == "slurm-options"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90", 90),
        ("90:01", 91),
        ("24:00:00", 1440),
        ("00:00:20", 1),
        ("2-1", 2940),
        ("2-01:30", 2970),
        ("1-00:00:30", 1441),
    ],
)
def test_time_limits(text, wanted):
    assert minutes(text) == wanted


def test_names_of_submitit():
    options = {"partition": "gpu", "time": "1:00:00", "gpus": "1", "cpus-per-task": "8", "tmp": "40G"}
    assert submitit_parameters(options) == {
        "name": "sparseg-cv",
        "slurm_signal_delay_s": 120,
        "slurm_partition": "gpu",
        "timeout_min": 60,
        "gpus_per_node": 1,
        "cpus_per_task": 8,
        "slurm_additional_parameters": {"requeue": True, "tmp": "40G"},
    }


class FakeExecutor:
    """The part of submitit's executor that is used."""

    made: list[FakeExecutor]
    refuse: Exception | None = None

    def __init__(self, **options):
        self.options, self.tasks, self.parameters, self.in_batch = options, [], {}, False
        FakeExecutor.made.append(self)

    def update_parameters(self, **parameters):
        self.parameters = parameters

    @contextmanager
    def batch(self):
        self.in_batch = True
        yield
        if FakeExecutor.refuse is not None:
            raise FakeExecutor.refuse
        self.in_batch = False

    def submit(self, task):
        assert self.in_batch
        self.tasks.append(task)
        return SimpleNamespace(job_id=f"77_{len(self.tasks) - 1}")


class FakeRefusedError(RuntimeError):
    """Stands for submitit's errors."""


@pytest.fixture
def fake_submitit(monkeypatch):
    utils = SimpleNamespace(FailedJobError=FakeRefusedError, FailedSubmissionError=FakeRefusedError)
    helpers = SimpleNamespace(DelayedSubmission=lambda task: ("again", task))
    module = SimpleNamespace(
        AutoExecutor=FakeExecutor, core=SimpleNamespace(utils=utils), helpers=helpers, __name__="submitit"
    )
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setitem(sys.modules, "pkg_resources", SimpleNamespace())
    monkeypatch.setattr(FakeExecutor, "made", [], raising=False)
    return module


@pytest.mark.usefixtures("fake_submitit")
def test_one_job_per_fold(trained):
    jobs = submit(trained, {0: ["train", "0"], 1: ["train", "1"]}, {"partition": "gpu", "time": "60"})
    assert jobs == {0: "77_0", 1: "77_1"}
    (executor,) = FakeExecutor.made
    assert executor.options == {
        "folder": trained.folder / "logs" / "slurm",
        "cluster": "slurm",
        "slurm_max_num_timeout": 1000,
    }
    assert executor.tasks == [FoldTask(("train", "0")), FoldTask(("train", "1"))]
    assert executor.parameters["timeout_min"] == 60


@pytest.mark.usefixtures("fake_submitit")
def test_what_slurm_says_is_passed_on(trained, monkeypatch):
    monkeypatch.setattr(FakeExecutor, "refuse", FakeRefusedError("sbatch: error:\ninvalid partition"))
    with pytest.raises(SparsegError, match="sbatch: error: invalid partition; correct the options"):
        submit(trained, {0: ["train"]}, {"partition": "none"})


def test_without_slurm_or_submitit(trained, fake_submitit, monkeypatch):
    def no_cluster(**_):
        raise RuntimeError('Could not detect "srun"')

    fake_submitit.AutoExecutor = no_cluster
    with pytest.raises(ConfigError, match="login node"):
        submit(trained, {0: ["train"]}, {})
    for missing in ("submitit", "pkg_resources"):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(MissingExtraError, match=rf"no module {missing}.*sparseg\[slurm\]"):
            submit(trained, {0: ["train"]}, {})


def test_a_task_ends_as_its_command_does():
    assert FoldTask((sys.executable, "-I", "-c", "pass"))() == 0
    with pytest.raises(SparsegError, match="exit code 3"):
        FoldTask((sys.executable, "-I", "-c", "raise SystemExit(3)"))()


@pytest.mark.usefixtures("fake_submitit")
def test_before_a_requeue_the_training_saves(tmp_path):
    """Slurm sends SIGUSR2 to every process: submitit's handler answers it, the training must outlive it."""
    task = FoldTask((sys.executable, "-I", "-c", SAVING, str(tmp_path), "0"))
    answers = []

    def handler(*_):
        answers.append(task.checkpoint())

    def slurm_takes_the_machine():
        wait_for(tmp_path / "started_0")
        os.kill(task._process.pid, signal.SIGUSR2)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handler)
    thread = threading.Thread(target=slurm_takes_the_machine)
    thread.start()
    try:
        with pytest.raises(SparsegError, match="exit code 143"):
            task()
        assert signal.getsignal(signal.SIGUSR2) is handler
    finally:
        thread.join()
        signal.signal(signal.SIGUSR2, before)
    assert (tmp_path / "saved").exists()
    assert answers == [("again", FoldTask(task.command))]
    assert task.__getstate__() == {"command": task.command}


def test_script(trained):
    command = ["python", "-m", "sparseg", "cv", "/data/my set", "--out", "/runs/cv", "--fold"]
    text = script(trained, command, {"partition": "gpu", "time": "24:00:00", "gpus": "1"})
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in (
        "#SBATCH --array=0-1",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=24:00:00",
        "#SBATCH --gpus=1",
        f"#SBATCH --output={trained.folder}/logs/slurm_%A_%a.txt",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@120",
    ):
        assert line in lines
    assert """python -m sparseg cv '/data/my set' --out /runs/cv --fold "$SLURM_ARRAY_TASK_ID" &""" in lines
    # sbatch reads its options up to the first command.
    first_command = lines.index("again=0")
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


@pytest.fixture
def batch(trained, tmp_path):
    """Return `batch(program)`: start the script for fold 1 under bash, with a `scontrol` that tells."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    (tools / "scontrol").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_ARRAY_JOB_ID": "500",
        "SLURM_ARRAY_TASK_ID": "1",
    }

    def start(program):
        command = [sys.executable, "-I", "-c", program, str(tmp_path), "--fold"]
        file = tmp_path / "job.sh"
        file.write_text(script(trained, command, {}))
        return subprocess.Popen(["bash", str(file)], env=environment)

    return start


def test_script_ends_as_its_fold_does(batch, tmp_path):
    assert batch("import sys; sys.exit(int(sys.argv[-1]) + 6)").wait() == 7
    assert batch("pass").wait() == 0
    assert not (tmp_path / "requeued").exists()


def test_script_before_the_time_limit_saves_and_queues_again(batch, tmp_path):
    process = batch(SAVING)
    wait_for(tmp_path / "started_1")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=10) == 0
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 500_1\n"


def test_script_waits_for_a_training_that_is_told_to_stop(batch, tmp_path):
    """On preemption Slurm sends SIGTERM to both; here the training ends by itself a little later."""
    process = batch(SAVING.replace("time.sleep(20)", "time.sleep(1); (folder / 'end').touch()"))
    wait_for(tmp_path / "started_1")
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    assert (tmp_path / "end").exists()
    assert not (tmp_path / "requeued").exists()


def test_requeue_time_is_that_of_the_script(trained):
    assert f"USR1@{slurm._SAVE_SECONDS}" in script(trained, ["train"], {})
