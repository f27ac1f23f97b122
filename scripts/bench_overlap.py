"""Reading and writing beside the network against one case after the other, round by round in one process.

    python scripts/bench_overlap.py demo/ct/imagesTs/ct_c --model models/sample_ct --threads 2 \
        --json benchmarks/YYYY-MM-DD-overlap-cases.json
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from sparseg.benchmark.machine import commit, cpu_threads, describe_machine
from sparseg.benchmark.report import write_json
from sparseg.errors import SparsegError
from sparseg.predict.batch import predict_cases
from sparseg.predict.case import CaseResult
from sparseg.predict.ensemble import load_predictor
from sparseg.predict.inputs import PredictionCase, collect_cases
from sparseg.predict.job import Progress
from sparseg.predict.rows import Row
from sparseg.predict.settings import PredictSettings


class Silent:
    """Watches a run and says nothing but errors."""

    def on_start(self, case: PredictionCase) -> Progress:
        """Watch no windows."""
        del case
        return lambda *_: None

    def on_redo(self, case: PredictionCase, why: str) -> None:
        """Nothing."""

    def on_done(self, case: PredictionCase, result: CaseResult) -> None:
        """Nothing."""

    def on_reused(self, case: PredictionCase, row: Row) -> None:
        """Nothing."""

    def on_error(self, case: PredictionCase, error: SparsegError) -> None:
        """End: times of failed cases mean nothing."""
        sys.exit(f"{case.name}: {error}")

    def on_wait(self, num_cases: int) -> None:
        """Nothing."""


def main() -> None:
    """Measure and write the row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, help="image file or DICOM series")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=6, help="copies of the image")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cpu_threads(options.threads):
        machine = describe_machine(torch.device(options.device))
        seconds = measure(options, Path(folder))
    ratios = [one / both for one, both in zip(seconds["one by one"], seconds["overlapping"], strict=True)]
    row = {
        "benchmark": "cases that overlap",
        "model": options.model.name,
        "image": options.image.name,
        "cases": options.cases,
        "device": options.device,
        "seconds": seconds,
        "one by one / overlapping": round(median(ratios), 3),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    sys.stdout.write(f"{row}\n")
    if options.json:
        write_json(options.json, {"machine": machine, "rows": [row]})


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each round; who begins changes from round to round."""
    images = []
    for number in range(options.cases):
        images.append(folder / "in" / f"case{number}{''.join(options.image.suffixes)}")
        images[-1].parent.mkdir(exist_ok=True)
        copy = shutil.copytree if options.image.is_dir() else shutil.copy
        copy(options.image, images[-1])
    ways = {"one by one": False, "overlapping": True}
    predictors = {
        name: load_predictor([options.model], PredictSettings(device=options.device, overlap_cases=overlap))
        for name, overlap in ways.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name in sorted(ways, reverse=number % 2 == 0):
            out = folder / f"out{number} {name}"
            cases = collect_cases(images, out, suffix=".nii.gz")
            start = time.perf_counter()
            predict_cases(predictors[name], cases, out, Silent())
            if number:  # the first round warms up
                seconds[name].append(round(time.perf_counter() - start, 3))
    return seconds


if __name__ == "__main__":
    main()
