"""One prediction from file to file, by one of the ways that are compared, with the network timed inside.

`python -m sparseg.benchmark.files_run` does it once and writes its peak memory, for a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from sparseg.benchmark.files_monai import MonaiPipeline
from sparseg.benchmark.memory import peak_of_process
from sparseg.checkpoints.folder import load_model, read_card
from sparseg.models.network import Network
from sparseg.predict.case import LoadedCase
from sparseg.predict.machine import peak_bytes_so_far
from sparseg.predict.outputs import write_labels
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.preprocessing.pipeline import prepare
from sparseg.volumes.io import read_volume

BASE = "monai"
# What each way runs: MONAI's transforms; ours on the same field and windows, with the same interpolation;
# ours as it comes; ours with the windows laid over the body.
WAYS = (BASE, "same windows", "default", "body only")
PARTS = ("read", "prepare", "network", "stitch", "finish", "statistics", "write")


class OnePass(NamedTuple):
    """Times of one prediction.

    Attributes:
        seconds: From the image file to the label file.
        cpu_seconds: Processor seconds of all threads.
        parts: Seconds of the `PARTS`; what a way has not is 0.
        num_windows: Windows run.
    """

    seconds: float
    cpu_seconds: float
    parts: dict[str, float]
    num_windows: int

    @property
    def other_seconds(self) -> float:
        """Everything but the network."""
        return self.seconds - self.parts["network"]


@dataclass(frozen=True)
class Task:
    """What is predicted: image file, model folder, overlap of the windows."""

    image: Path
    model: Path
    overlap: float


class Way:
    """One way to predict, loaded and ready.

    Args:
        name: One of `WAYS`.
        task: What is predicted.
    """

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.task = name, task
        net, card = load_model(task.model), read_card(task.model)
        if name == BASE:
            net.eval()
            self._run = MonaiPipeline(net, card.preprocess, task.overlap).run
        else:
            if name == "same windows":
                preprocess = card.preprocess.model_copy(update={"foreground_crop": False})
                card = card.model_copy(update={"preprocess": preprocess})
            self._run = _Ours(Predictor(net, card, _settings(name, task)), equal=name == "same windows").run
        self.net = net

    def predict(self, folder: Path) -> OnePass:
        """Predict into a file of the image's name in `folder`."""
        (folder / self.task.image.name).unlink(missing_ok=True)
        with _NetworkTimer(self.net) as timer:
            began, cpu = time.perf_counter(), time.process_time()
            seconds = self._run(self.task.image, folder)
            total, cpu = time.perf_counter() - began, time.process_time() - cpu
        seconds |= {"network": timer.seconds, "stitch": seconds["windows"] - timer.seconds}
        return OnePass(total, cpu, {part: seconds.get(part, 0.0) for part in PARTS}, timer.num_windows)


class _Ours:
    """`predict_file`, or the same steps with the plain interpolation of MONAI's `Spacing`."""

    def __init__(self, predictor: Predictor, *, equal: bool) -> None:
        self.predictor, self.equal = predictor, equal

    def run(self, image: Path, folder: Path) -> dict[str, float]:
        output = folder / image.name
        if not self.equal:
            return dict(self.predictor.predict_file(image, output).seconds)
        case = self._load(image)
        return dict(self.predictor.finish(case, self.predictor.run_case(case), output).seconds)

    def _load(self, path: Path) -> LoadedCase:
        began = time.perf_counter()
        image = read_volume(path)
        read = time.perf_counter()
        prepared = prepare(image, self.predictor.card.preprocess, antialias=False)
        seconds = {"read": read - began, "prepare": time.perf_counter() - read}
        return LoadedCase(prepared, image.affine, write_labels, seconds)


class _NetworkTimer:
    """Seconds within a network and windows it has seen, while the context is open."""

    def __init__(self, net: Network) -> None:
        self.net, self.seconds, self.num_windows = net, 0.0, 0
        self._started = 0.0

    def __enter__(self) -> Self:
        self._handles = [
            self.net.register_forward_pre_hook(self._start),
            self.net.register_forward_hook(self._stop),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:  # noqa: ARG002
        self.seconds += time.perf_counter() - self._started
        self.num_windows += len(inputs[0])


def _settings(name: str, task: Task) -> PredictSettings:
    return PredictSettings(
        overlap=task.overlap,
        keep_empty=name == "same windows",
        body_only=name == "body only",
        overlap_cases=False,
    )


def measure_peak(name: str, task: Task, folder: Path, *, threads: int) -> int:
    """Highest resident size in bytes of a fresh process that predicts once.

    Raises:
        SparsegError: that process failed, most often for want of memory.
    """
    command = [sys.executable, "-m", "sparseg.benchmark.files_run", name, str(task.image), str(task.model)]
    command += [str(folder), "--overlap", str(task.overlap), "--threads", str(threads)]
    return peak_of_process(command, name, remedy="if memory ran out, take --size half")


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict once in this process and write one line of JSON."""
    parser = argparse.ArgumentParser(prog="sparseg.benchmark.files_run", description=__doc__)
    parser.add_argument("name", choices=WAYS)
    parser.add_argument("image", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--overlap", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    Way(options.name, Task(options.image, options.model, options.overlap)).predict(options.folder)
    sys.stdout.write(json.dumps({"peak_memory_bytes": peak_bytes_so_far()}) + "\n")


if __name__ == "__main__":
    main()
