"""From file to file, ours against MONAI's transforms around the same network, in interleaved rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sparseg.benchmark.files_case import LABELS, SIZES, make_ct, model_spacing
from sparseg.benchmark.files_model import random_model
from sparseg.benchmark.files_run import BASE, PARTS, WAYS, OnePass, Task, Way, measure_peak
from sparseg.benchmark.machine import commit, cpu_threads, describe_machine
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import load_model, read_card, save_model
from sparseg.errors import ConfigError
from sparseg.volumes.io import read_labels
from sparseg.volumes.nifti_writer import write_image

Progress = Callable[[str], None]


def bench_files(
    *,
    preset: str = "vit_tiny_p8",
    model: Path | None = None,
    size: str = "full",
    overlap: float = 0.5,
    pairs: int = 5,
    warmup: int = 1,
    threads: int | None = None,
    seed: int = 0,
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Predict a synthetic CT in each way in turn, round after round.

    Args:
        preset: Named model with 14 classes, with random weights.
        model: Folder of a model to take instead, trained for the synthetic CT (see `files_model`).
        size: One of `SIZES`.
        overlap: Share of the roi by which windows overlap.
        pairs: Counted rounds.
        warmup: Rounds before them that are not counted.
        threads: CPU threads; None leaves torch's number.
        seed: Of the CT and of random weights.
        on_progress: Called with a line of text before each pass.

    Returns:
        `machine` and `rows`, one per way, ready for `write_json`; see docs/how-to/benchmark.md.

    Raises:
        ConfigError: unknown preset or size, a model for other labels, a count out of range.
        SparsegError: a memory measurement failed.
    """
    require_rounds(size, pairs, warmup)
    device = torch.device("cpu")
    with cpu_threads(threads), tempfile.TemporaryDirectory(prefix="sparseg-bench-") as name:
        folder = Path(name)
        machine = describe_machine(device)
        on_progress("making the CT and the model")
        task, truth = _make_task(folder, preset, model, size, overlap, seed)
        peaks = {}
        for way in WAYS:
            on_progress(f"memory: {way}")
            peaks[way] = measure_peak(way, task, _place(folder, way), threads=machine["threads"])
        passes = _rounds(task, folder, pairs, warmup, on_progress)
        labels = {way: read_labels(_place(folder, way) / task.image.name).array[0] for way in WAYS}
        card = read_card(task.model)
    shared = {
        "preset": preset if model is None else None,
        "weights": "random" if model is None else card.provenance.note,
        "weights_sha256": card.weights_sha256,
        "size": size,
        "shape": SIZES[size][0],
        "spacing_mm": SIZES[size][1],
        "model_spacing_mm": card.preprocess.spacing,
        "roi": card.model.roi_size,
        "overlap": overlap,
        "pairs": pairs,
        "warmup": warmup,
        "dtype": "float32",
        "device": device.type,
        "torch": torch.__version__,
        "commit": commit(["."]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    rows = [
        {
            "way": way,
            **_summary(passes[way]),
            "peak_memory_bytes": peaks[way],
            "same_labels_as_monai": float(np.mean(labels[way] == labels[BASE])),
            "dice": None if model is None else mean_dice(labels[way], truth),
            **shared,
        }
        for way in WAYS
    ]
    return {"machine": machine, "rows": rows}


def mean_dice(labels: np.ndarray, truth: np.ndarray) -> float:
    """Mean Dice over the labels of the synthetic CT that are in `truth`, background excepted."""
    size = len(LABELS)
    joint = np.bincount(truth.ravel().astype(np.int64) * size + labels.ravel(), minlength=size * size)
    table = joint.reshape(size, size)
    both, sums = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    present = table.sum(axis=1)[1:] > 0
    return float((2 * both / np.maximum(sums, 1))[1:][present].mean())


def _make_task(
    folder: Path, preset: str, model: Path | None, size: str, overlap: float, seed: int
) -> tuple[Task, np.ndarray]:
    """Write the CT and a model for its size; return what to predict and the true labels `[H, W, D]`."""
    image, labels = make_ct(*SIZES[size], seed=seed)
    write_image(folder / "ct.nii.gz", image)
    net, card = random_model(preset, seed) if model is None else (load_model(model), read_card(model))
    require_synthetic_labels(card, model or preset)
    preprocess = card.preprocess.model_copy(update={"spacing": model_spacing(*SIZES[size])})
    save_model(folder / "model", net, card.model_copy(update={"preprocess": preprocess}))
    return Task(folder / "ct.nii.gz", folder / "model", overlap), labels.array[0]


def _rounds(
    task: Task, folder: Path, pairs: int, warmup: int, on_progress: Progress
) -> dict[str, list[OnePass]]:
    """The counted passes of each way, in rounds over the ways."""
    ways = {name: Way(name, task) for name in WAYS}
    passes: dict[str, list[OnePass]] = {name: [] for name in WAYS}
    for number in range(-warmup, pairs):
        label = "warm-up" if number < 0 else f"pair {number + 1} of {pairs}"
        for name, way in ways.items():
            on_progress(f"{label}: {name}")
            done = way.predict(_place(folder, name))
            if number >= 0:
                passes[name].append(done)
    return passes


def _place(folder: Path, way: str) -> Path:
    """Folder for the labels of one way."""
    place = folder / way.replace(" ", "_")
    place.mkdir(exist_ok=True)
    return place


def _summary(passes: list[OnePass]) -> dict[str, Any]:
    seconds = [one.seconds for one in passes]
    p10, p90 = np.percentile(seconds, (10, 90)).tolist()
    return {
        "seconds": median(seconds),
        "seconds_all": seconds,
        "p10": p10,
        "p90": p90,
        "other_seconds": median(one.other_seconds for one in passes),
        "other_seconds_all": [one.other_seconds for one in passes],
        "cpu_seconds": median(one.cpu_seconds for one in passes),
        "parts": {part: median(one.parts[part] for one in passes) for part in PARTS},
        "num_windows": passes[-1].num_windows,
    }


def require_synthetic_labels(card: ModelCard, where: Path | str) -> None:
    """Refuse a model that was not made for the synthetic CT.

    Raises:
        ConfigError: other labels.
    """
    if card.labels != LABELS:
        raise ConfigError(
            "the model must have the labels of the synthetic CT",
            received=f"{len(card.labels)} labels",
            remedy="train one with python -m sparseg.benchmark.files_model FOLDER",
            where=where,
        )


def require_rounds(size: str, pairs: int, warmup: int) -> None:
    """Refuse a size that does not exist, and counts out of range.

    Raises:
        ConfigError: names it.
    """
    if size not in SIZES:
        raise ConfigError(
            f"the size must be one of {', '.join(SIZES)}", received=size, where="size", remedy="--size half"
        )
    for name, value, least in (("pairs", pairs, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ConfigError(
                f"{name} must be at least {least}", received=value, where=name, remedy="give a larger number"
            )
