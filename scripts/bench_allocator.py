"""Times training steps with freed memory kept by the process or returned to the system.

    python scripts/bench_allocator.py --json benchmarks/YYYY-MM-DD-allocator.json

The allocator is set once per process, so each measurement has a process of its own; the two ways take turns.
A step is forward, Dice with cross-entropy, backward and AdamW.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sparseg.allocator import keep_freed_memory
from sparseg.benchmark.machine import commit, describe_machine
from sparseg.models.build import build_segmenter
from sparseg.training.losses import make_loss

WAYS = ("returned", "kept")


def main() -> None:
    """Measure, in this process or in others, and write."""
    options = parse()
    if options.way:
        sys.stdout.write(json.dumps(measure(options)))
        return
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for preset, crop, batch in (("vit_tiny_p8", 64, 2), ("vit_small_p8", 96, 1)):
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(options.pairs):
            for way in WAYS:
                found[way].append(in_process(options, way, preset, crop, batch))
            sys.stdout.write(f"{preset}: pair {number + 1} of {options.pairs}\n")
            sys.stdout.flush()
        pairs = zip(found["returned"], found["kept"], strict=True)
        rows.append(
            {
                **{"preset": preset, "crop": crop, "batch": batch, "pairs": options.pairs},
                "kept/returned": median(kept["seconds"] / other["seconds"] for other, kept in pairs),
                **{
                    way: {name: median(one[name] for one in found[way]) for name in found[way][0]}
                    for way in WAYS
                },
                "raw": found,
            }
        )
    content = {
        "machine": describe_machine(torch.device("cpu")),
        "commit": commit(),
        "date": date.today().isoformat(),
        "rows": rows,
    }
    options.json.write_text(json.dumps(content, indent=2) + "\n")
    for row in rows:
        sys.stdout.write(f"{row['preset']}: kept takes {row['kept/returned']:.2f} of the time\n")


def in_process(options: argparse.Namespace, way: str, preset: str, crop: int, batch: int) -> dict[str, float]:
    """One measurement in a fresh process."""
    sizes = [*("--preset", preset), *("--crop", str(crop)), *("--batch", str(batch))]
    command = [sys.executable, __file__, "--way", way, "--threads", str(options.threads), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, and the peak of the process."""
    if options.way == "kept" and not keep_freed_memory():
        raise SystemExit("this C library cannot be told, or the environment tells it otherwise")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = (options.crop,) * 3
    net = build_segmenter(options.preset, roi_size=size).train()
    optimizer, loss = torch.optim.AdamW(net.parameters()), make_loss(regions=False)
    image, target = torch.randn(options.batch, 1, *size), torch.randint(0, 14, (options.batch, 1, *size))
    seconds = []
    for _ in range(options.warmup + options.steps):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss(net(image), target).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": median(seconds[options.warmup :]), "peak_memory_bytes": peak}


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("allocator.json"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--preset", default="vit_tiny_p8")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
