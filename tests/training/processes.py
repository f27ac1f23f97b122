"""Starts runs of two real processes, as a user does with torchrun, on the CPU of this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparseg.config import to_yaml
from sparseg.training import log
from sparseg.training.config import TrainConfig
from training.toy import toy_config

TESTS = Path(__file__).parent.parent


def quiet_config(**changes: Any) -> TrainConfig:
    """Twenty steps in which nothing depends on which process a crop goes to."""
    model = {"drop_path": 0.0, "noise_scale": 0.0, "feature_size": 2, **changes.pop("model", {})}
    # With seed 0 two tokens at the border of the selection score alike but for rounding.
    return toy_config(**{"model": model, "max_steps": 20, "validate_every": 10, "seed": 1} | changes)


def write_config(path: Path, config: TrainConfig) -> Path:
    path.write_text(to_yaml(config))
    return path


class Launch:
    """A torchrun of two processes; its output goes to a file.

    Args:
        arguments: What torchrun runs, such as `-m sparseg train ...`.
        folder: Working folder; holds the output.
        options: Further options of torchrun.
    """

    def __init__(self, arguments: Sequence[object], folder: Path, options: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / f"output_{len(list(folder.glob('output_*')))}.txt"
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": str(TESTS),
        }
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(_free_port()), *options]
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)],
                cwd=folder,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        """What all processes have printed so far."""
        return self.output.read_text(errors="replace")

    def wait(self, seconds: float = 120) -> int:
        """Exit code of torchrun, which must end within `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            raise AssertionError(f"still running after {seconds} s: {self.text[-3000:]}") from None

    def pid_of(self, rank: int) -> int:
        """Process id of a rank."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        for pid in listed.stdout.split():
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables:
                return int(pid)
        raise AssertionError(f"no process of rank {rank}: {self.text[-3000:]}")

    def wait_for_step(self, run: Path, step: int, seconds: float = 90) -> None:
        """Until the log of a run holds a step."""
        end = time.monotonic() + seconds
        while not any(row["step"] >= step for row in log.read(run)):
            assert time.monotonic() < end, self.text[-3000:]
            assert self.process.poll() is None, self.text[-3000:]
            time.sleep(0.05)


def train_with_two(
    dataset: Path, run: Path, config: TrainConfig, *flags: object, options: Sequence[str] = ()
) -> Launch:
    """Start `torchrun -m sparseg train`; without --resume with the settings of `config`."""
    given = [] if "--resume" in flags else ["--config", write_config(run.parent / f"{run.name}.yaml", config)]
    command = ["-m", "sparseg", "train", dataset, "--out", run, *given, *flags]
    return Launch(command, run.parent / f"{run.name}_work", options)


def rows(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Rows of a run's log."""
    return [row for row in log.read(run) if row["kind"] == kind]


def newest_state(run: Path) -> dict[str, Any]:
    """Progress and tensors of the newest stored state."""
    record = max((run / "state").glob("step_*.json"))
    tensors: dict[str, Any] = torch.load(record.with_suffix(".pt"), weights_only=True)
    return tensors | {"progress": json.loads(record.read_text())["progress"]}


def same_tensors(one: Any, two: Any) -> bool:
    """Whether two states hold the same values, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_tensors(value, two[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same_tensors(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
