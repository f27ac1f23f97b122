"""Time `sparseg check` on many synthetic cases and record the peak memory of all its processes.

    python scripts/bench_check.py --json benchmarks/YYYY-MM-DD-check-1000.json

The cases are written to a temporary folder first. The command then runs twice, the second time with its
memory of the first. Peak memory is the highest sum of resident sizes over the command and its workers,
sampled twenty times a second; pages that processes share count once for each of them. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.benchmark.machine import commit, cpu_name, os_name
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.volume import Volume

_PAGE = os.sysconf("SC_PAGE_SIZE")
_AFFINE = np.array([[-1.0, 0, 0, 30], [0, -1.0, 0, 30], [0, 0, 2.0, -60], [0, 0, 0, 1]])


def write_dataset(root: Path, num_cases: int, shape: tuple[int, int, int]) -> int:
    """Write a Decathlon dataset of noise in HU with two box-shaped organs; return its bytes."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    entries = []
    noise = np.random.default_rng(0).normal(0, 20, shape)
    for number in range(num_cases):
        rng = np.random.default_rng(number + 1)
        labels = np.zeros(shape, np.uint8)
        for organ in (1, 2):
            start = [int(rng.integers(size // 4, size // 2)) for size in shape]
            stop = [
                first + int(rng.integers(size // 8, size // 4))
                for first, size in zip(start, shape, strict=True)
            ]
            labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = organ
        image = np.roll(noise, number, axis=number % 3) + 60 * labels
        image[: shape[0] // 8] = -1000
        image[0, 0, 0] = -1000 - number % 24
        entry = {"image": f"imagesTr/case_{number:04d}.nii.gz", "label": f"labelsTr/case_{number:04d}.nii.gz"}
        write_image(root / entry["image"], Volume(image.astype(np.int16)[None], _AFFINE))
        write_label_map(root / entry["label"], labels, _AFFINE)
        entries.append(entry)
    names = {"0": "background", "1": "liver", "2": "tumor"}
    content = {"name": "synthetic", "channel_names": {"0": "CT"}, "labels": names, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    return sum(path.stat().st_size for path in root.rglob("*.nii.gz"))


def resident_bytes(root_pid: int) -> int:
    """Sum of the resident sizes of a process and everything below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    tree, grown = {root_pid}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grown = bool(more)
    total = 0
    for pid in tree:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        except OSError:
            continue
    return total


def run_check(root: Path, out: Path, cache: Path, workers: int) -> dict[str, Any]:
    """Run the command once and return its exit code, seconds and peak memory."""
    command = [
        sys.executable,
        "-m",
        "sparseg",
        "check",
        str(root),
        "--out",
        str(out),
        "--workers",
        str(workers),
    ]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    counts = json.loads((out / "check.json").read_text())["counts"]
    return {
        "exit_code": process.returncode,
        "seconds": round(seconds, 2),
        "peak_rss_bytes": peak,
        "counts": counts,
    }


def main() -> None:
    """Write the cases, run the check twice, and write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "synthetic"
        num_bytes = write_dataset(root, options.cases, tuple(options.shape))
        load = round(os.getloadavg()[0], 2)
        runs = [
            run_check(root, Path(folder) / "out", Path(folder) / "cache", options.workers) for _ in range(2)
        ]
    for name, result in zip(("first", "remembered"), runs, strict=True):
        result["run"] = name
        result["cases_per_second"] = round(options.cases / result["seconds"], 1)
    row = {
        "command": f"sparseg check DATASET --workers {options.workers}",
        "script": " ".join(["scripts/bench_check.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "os": os_name(),
            "load_1min": load,
        },
        "dataset": {
            "cases": options.cases,
            "shape": list(options.shape),
            "image": "int16",
            "bytes": num_bytes,
        },
        "runs": runs,
    }
    options.json.write_text(json.dumps(row, indent=2) + "\n")
    sys.stdout.write(json.dumps(runs, indent=2) + "\n")


if __name__ == "__main__":
    main()
