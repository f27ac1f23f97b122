"""Whole volumes: the windows of sparse, dense patch 8 and dense patch 16, with skipping off and on.

`python -m sparseg.benchmark.windows` runs one volume once and writes its peak, for a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from sparseg.benchmark.files import mean_dice, require_rounds, require_synthetic_labels
from sparseg.benchmark.files_case import SIZES, make_ct, model_spacing
from sparseg.benchmark.files_model import model_card
from sparseg.benchmark.machine import commit, cpu_threads, describe_machine
from sparseg.benchmark.memory import peak_of_process
from sparseg.checkpoints.folder import load_model, read_card, save_model
from sparseg.models.baselines import baseline_options
from sparseg.models.build import build_segmenter
from sparseg.predict.decide import largest_class
from sparseg.predict.machine import peak_bytes_so_far
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.preprocessing.pipeline import Prepared, prepare

Progress = Callable[[str], None]
VARIANTS = ("sparse", "dense_p8", "dense_p16")
WAYS = {
    "all windows": PredictSettings(keep_empty=True),
    "empty skipped": PredictSettings(),
    "body only": PredictSettings(body_only=True),
}


class VolumePass(NamedTuple):
    """One volume through all of its windows.

    Attributes:
        seconds: Windows and their sums; no reading, no resampling.
        network_seconds: Of these, within the network.
        num_windows: Windows run.
        num_skipped: Windows not run.
        labels: uint8 `[H, W, D]` on the model grid.
    """

    seconds: float
    network_seconds: float
    num_windows: int
    num_skipped: int
    labels: np.ndarray


def bench_windows(
    *,
    preset: str = "vit_tiny_p8",
    model: Path | None = None,
    size: str = "half",
    overlap: float = 0.5,
    pairs: int = 5,
    warmup: int = 1,
    threads: int | None = None,
    seed: int = 0,
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Run all windows of a synthetic CT, variant by variant and way by way, round after round.

    Args:
        preset: Named model with 14 classes, with random weights, and the dense models of its size.
        model: Folder of a trained model to take instead, alone; gives Dice.
        size: One of `SIZES`.
        overlap: Share of the roi by which windows overlap.
        pairs: Counted rounds.
        warmup: Rounds before them that are not counted.
        threads: CPU threads; None leaves torch's number.
        seed: Of the CT and of random weights.
        on_progress: Called with a line of text before each pass.

    Returns:
        `machine` and `rows`, one per variant and way, ready for `write_json`; see docs/how-to/benchmark.md.

    Raises:
        ConfigError: unknown preset or size, a model for other labels, a count out of range.
        SparsegError: a memory measurement failed.
    """
    require_rounds(size, pairs, warmup)
    with cpu_threads(threads), tempfile.TemporaryDirectory(prefix="sparseg-bench-") as name:
        machine = describe_machine(torch.device("cpu"))
        on_progress("making the CT and the models")
        models = _save_models(Path(name), preset, model, size, seed)
        image, truth = make_ct(*SIZES[size], seed=seed)
        cells = list(product(models, WAYS))
        peaks = {}
        for variant, way in cells:
            on_progress(f"memory: {variant}, {way}")
            peaks[variant, way] = _measure_peak(models[variant], way, size, overlap, machine["threads"], seed)
        prepared = prepare(image, read_card(next(iter(models.values()))).preprocess, labels=truth)
        passes = _rounds(models, prepared, overlap, pairs, warmup, on_progress)
    shared = {
        "preset": preset if model is None else None,
        "size": size,
        "shape": prepared.image.shape,
        "overlap": overlap,
        "pairs": pairs,
        "warmup": warmup,
        "dtype": "float32",
        "device": "cpu",
        "torch": torch.__version__,
        "commit": commit(["."]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    assert prepared.labels is not None
    wanted = prepared.labels.array[0]
    rows = [
        {
            "variant": variant,
            "way": way,
            **_summary(passes[variant, way]),
            "peak_memory_bytes": peaks[variant, way],
            "same_labels": float(np.mean(_labels(passes, variant, way) == _labels(passes, variant))),
            "dice": None if model is None else mean_dice(_labels(passes, variant, way), wanted),
            **shared,
        }
        for variant, way in cells
    ]
    return {"machine": machine, "rows": rows}


def run_volume(predictor: Predictor, prepared: Prepared) -> VolumePass:
    """Run the windows of an image on the model grid once."""
    network = 0.0
    started = 0.0

    def start(*_: object) -> None:
        nonlocal started
        started = time.perf_counter()

    def stop(*_: object) -> None:
        nonlocal network
        network += time.perf_counter() - started

    handles = [predictor.net.register_forward_pre_hook(start), predictor.net.register_forward_hook(stop)]
    try:
        began = time.perf_counter()
        found = predictor.run_windows(prepared.image)
        seconds = time.perf_counter() - began
    finally:
        for handle in handles:
            handle.remove()
    labels = largest_class(found.logits).numpy()
    return VolumePass(seconds, network, found.num_windows, found.num_skipped, labels)


def _save_models(folder: Path, preset: str, model: Path | None, size: str, seed: int) -> dict[str, Path]:
    """Model folders by variant, each with the spacing for the size and without a crop to the foreground."""
    nets = {}
    if model is None:
        for name in VARIANTS:
            torch.manual_seed(seed)
            net = build_segmenter(preset, **({} if name == "sparse" else baseline_options(name)["model"]))
            nets[name] = (net, model_card(net, crop=False))
    else:
        nets["model"] = (load_model(model), read_card(model))
    for name, (net, card) in nets.items():
        require_synthetic_labels(card, model or preset)
        changes = {"spacing": model_spacing(*SIZES[size]), "foreground_crop": False}
        preprocess = card.preprocess.model_copy(update=changes)
        save_model(folder / name, net, card.model_copy(update={"preprocess": preprocess}))
    return {name: folder / name for name in nets}


def _rounds(
    models: dict[str, Path],
    prepared: Prepared,
    overlap: float,
    pairs: int,
    warmup: int,
    on_progress: Progress,
) -> dict[tuple[str, str], list[VolumePass]]:
    """The counted passes of each variant and way, in rounds over all; only the last labels are kept."""
    predictors = {
        (name, way): _predictor(folder, way, overlap) for name, folder in models.items() for way in WAYS
    }
    passes: dict[tuple[str, str], list[VolumePass]] = {cell: [] for cell in predictors}
    for number in range(-warmup, pairs):
        label = "warm-up" if number < 0 else f"pair {number + 1} of {pairs}"
        for cell, predictor in predictors.items():
            on_progress(f"{label}: {', '.join(cell)}")
            done = run_volume(predictor, prepared)
            if number >= 0:
                passes[cell].append(done if number == pairs - 1 else done._replace(labels=np.empty(0)))
    return passes


def _predictor(folder: Path, way: str, overlap: float) -> Predictor:
    return Predictor(load_model(folder), read_card(folder), replace(WAYS[way], overlap=overlap))


def _labels(
    passes: dict[tuple[str, str], list[VolumePass]], variant: str, way: str = next(iter(WAYS))
) -> np.ndarray:
    return passes[variant, way][-1].labels


def _summary(passes: list[VolumePass]) -> dict[str, Any]:
    seconds = [one.seconds for one in passes]
    p10, p90 = np.percentile(seconds, (10, 90)).tolist()
    return {
        "seconds": median(seconds),
        "seconds_all": seconds,
        "p10": p10,
        "p90": p90,
        "network_seconds": median(one.network_seconds for one in passes),
        "num_windows": passes[-1].num_windows,
        "num_skipped": passes[-1].num_skipped,
    }


def _measure_peak(folder: Path, way: str, size: str, overlap: float, threads: int, seed: int) -> int:
    command = [sys.executable, "-m", "sparseg.benchmark.windows", str(folder), way, "--size", size]
    command += ["--overlap", str(overlap), "--threads", str(threads), "--seed", str(seed)]
    return peak_of_process(command, f"{folder.name}, {way}", remedy="if memory ran out, take --size half")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one volume in this process and write one line of JSON."""
    parser = argparse.ArgumentParser(prog="sparseg.benchmark.windows", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--size", required=True, choices=list(SIZES))
    parser.add_argument("--overlap", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    image, _ = make_ct(*SIZES[options.size], seed=options.seed)
    prepared = prepare(image, read_card(options.model).preprocess)
    run_volume(_predictor(options.model, options.way, options.overlap), prepared)
    sys.stdout.write(json.dumps({"peak_memory_bytes": peak_bytes_so_far()}) + "\n")


if __name__ == "__main__":
    main()
