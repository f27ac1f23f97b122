"""Times whole training steps, crops included, of a sparse model and the dense one of the same size.

    python scripts/bench_training_loop.py --dataset CT_SAMPLE --json benchmarks/YYYY-MM-DD-training-loop.json

Both runs live in one process and take turns step by step, so that a busy moment meets both. A step is what
`sparseg train` does between two lines of its log: wait for the crops, forward, loss, backward, clip, AdamW.
Crops are cut from the cache and augmented by the settings' worker processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sparseg.benchmark.machine import commit, describe_machine
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.training.augment import margin_size
from sparseg.training.config import TrainConfig
from sparseg.training.data import load_training_data, open_dataset
from sparseg.training.loop import Run
from sparseg.training.monitor import Silent


def main() -> None:
    """Measure and write."""
    options = parse()
    torch.set_num_threads(options.threads)
    dataset, facts = open_dataset(options.dataset)
    variants = {"sparse patch 8": {}, "dense patch 8": {"pruning_stages": ()}}
    with tempfile.TemporaryDirectory() as folder:
        runs, batches = {}, {}
        for name, model in variants.items():
            config = make_config(options, model)
            data = load_training_data(dataset, facts, config, chunk=margin_size((options.crop,) * 3))
            runs[name] = Run(dataset, data, config, Path(folder), Silent())
            runs[name].net.train()
            batches[name] = runs[name]._batches()
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for number in range(options.warmup + options.pairs):
            for name, run in runs.items():
                began = time.perf_counter()
                batch = next(batches[name])
                waited = time.perf_counter() - began
                run.step([batch])
                run._advance(time.monotonic(), skipped=False)
                if number >= options.warmup:
                    rows[name].append((time.perf_counter() - began, waited))
            sys.stdout.write(f"pair {number + 1} of {options.warmup + options.pairs}\n")
            sys.stdout.flush()
        for generator in batches.values():
            generator.close()  # type: ignore[attr-defined]  # ends the worker processes
    report(options, runs, rows)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--preset", default="vit_small_p8")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    return parser.parse_args()


def make_config(options: argparse.Namespace, model: dict[str, Any]) -> TrainConfig:
    """Usual augmentation, 3 mm voxels, the preset's keep ratio."""
    return TrainConfig(
        preset=options.preset,
        model={"roi_size": (options.crop,) * 3, **model},
        preprocess=PreprocessConfig(spacing=(3.0, 3.0, 3.0), intensity=CTIntensity(clip=(-200, 300))),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )


def report(
    options: argparse.Namespace, runs: dict[str, Run], rows: dict[str, list[tuple[float, float]]]
) -> None:
    """Print and write medians, and the ratio step by step."""
    content: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": describe_machine(torch.device("cpu")),
        "settings": {
            key: str(value) for key, value in vars(options).items() if key not in ("dataset", "json")
        },
        "quality": "not measured: these steps only time the loop",
        "rows": [],
    }
    for name, times in rows.items():
        seconds, waits = np.array(times).T
        content["rows"].append(
            {
                "model": name,
                "tokens": runs[name].plain_net.token_counts(),
                "seconds_median": round(float(np.median(seconds)), 3),
                "seconds_p10": round(float(np.quantile(seconds, 0.1)), 3),
                "seconds_p90": round(float(np.quantile(seconds, 0.9)), 3),
                "crops_per_second": round(options.batch_size / float(np.median(seconds)), 3),
                "data_wait_share": round(float(waits.sum() / seconds.sum()), 4),
            }
        )
    sparse, dense = (np.array(times)[:, 0] for times in rows.values())
    content["dense_over_sparse"] = round(median((dense / sparse).tolist()), 3)
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(
        json.dumps(content["rows"], indent=1) + f"\ndense / sparse {content['dense_over_sparse']}\n"
    )


if __name__ == "__main__":
    main()
