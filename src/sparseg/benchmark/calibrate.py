"""Measure a model's quality/time curve: Dice on cases, seconds per window, seconds of everything else."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from sparseg.allocator import memory_reused
from sparseg.benchmark.calibrate_cases import CaseKind, choose_cases, require_same_labels
from sparseg.benchmark.calibrate_figure import draw_curve
from sparseg.benchmark.machine import cpu_name
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import find_model
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.label_table import region_masks, require_known_ids
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.errors import ConfigError
from sparseg.metrics.overlap import dice_of_masks
from sparseg.predict.calibration import PICTURE, Calibration, CurvePoint, Machine, write_calibration
from sparseg.predict.dial import time_once
from sparseg.predict.predictor import Predictor, labels_on_original_grid
from sparseg.predict.ratios import Ratios, stage_ratios, token_counts
from sparseg.predict.settings import PredictSettings

ROUNDS = 11
_WARMUP = 1
_AFTER = ("finish", "statistics", "write")


@dataclass
class Measured:
    """What the cases gave.

    Attributes:
        dice: For each setting one row per case, one value per structure; NaN where not defined.
        before: Seconds of reading and preparing per million voxels, one per case.
        after: Seconds of finishing, numbers and writing per million voxels, one per case.
        stitch: Seconds per window outside the network, one per case and setting.
    """

    dice: list[list[list[float]]]
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    stitch: list[float] = field(default_factory=list)


def calibrate_folder(
    folder: Path,
    dataset: Path,
    *,
    keep_ratios: Sequence[float],
    max_cases: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    rounds: int = ROUNDS,
    on_step: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measure the curve of the model in `folder` and store it there, with its picture.

    Args:
        folder: Model folder or training run.
        dataset: Dataset with labels.
        keep_ratios: Ratios to measure beside the model's own setting.
        max_cases: Use the first so many cases.
        device: Where the network runs.
        threads: CPU threads; None leaves them as they are.
        rounds: Timed runs of a window per setting.
        on_step: Told what is being done.

    Raises:
        ConfigError: a dense model, a ratio out of range, or numbers below 1.
        DatasetError: no labelled cases, or other labels than the model's.
        CheckpointError: not a whole model.
    """
    _require_positive(max_cases=max_cases, threads=threads, rounds=rounds)
    if threads is not None:
        torch.set_num_threads(threads)
    predictor = Predictor.from_folder(folder, PredictSettings(device=device))
    settings = settings_to_measure(predictor, keep_ratios)
    data = read_dataset(dataset)
    require_same_labels(data, predictor.card)
    kind, cases = choose_cases(data, find_model(folder), predictor.card, max_cases)
    measured = measure_cases(predictor, data, cases, settings, on_step=on_step)
    on_step(f"timing one window, {rounds} rounds over {len(settings)} settings")
    seconds = time_settings(predictor, settings, rounds=rounds)
    calibration = _curve(predictor, data, kind, settings, measured, seconds)
    write_calibration(find_model(folder), calibration)
    draw_curve(find_model(folder) / PICTURE, calibration)
    return calibration


def settings_to_measure(predictor: Predictor, keep_ratios: Sequence[float]) -> list[Ratios]:
    """The model's own setting and the given ones, fewest tokens first; the same token counts only once.

    Raises:
        ConfigError: a dense model, or a ratio out of range.
    """
    config = predictor.net.config
    own = config.keep_ratios if config.num_keep is None else None
    found: dict[tuple[int, ...], Ratios] = {}
    wanted = [stage_ratios(predictor.net, (ratio,), where=predictor.name) for ratio in keep_ratios]
    if not config.pruning_stages:
        stage_ratios(predictor.net, (1.0,), where=predictor.name)
    for ratios in (own, *wanted):
        found.setdefault(tuple(token_counts(predictor.net, ratios)), ratios)
    return [found[counts] for counts in sorted(found, key=lambda counts: (sum(counts), counts))]


def measure_cases(
    predictor: Predictor,
    dataset: Dataset,
    cases: Sequence[Case],
    settings: Sequence[Ratios],
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Predict every case with every setting and score the labels on the original grid.

    Files are read, prepared, finished and written once per case, as `sparseg predict` does.
    """
    measured = Measured([[] for _ in settings])
    for number, case in enumerate(cases, start=1):
        on_step(f"case {number} of {len(cases)}: {len(settings)} settings")
        image, reference = load_case(case, dataset)
        assert reference is not None
        require_known_ids(reference.array, predictor.card.labels, where=case.label_files[0])
        mvoxels = math.prod(image.shape) / 1e6
        del image
        loaded = predictor.load(case.images[0], channels=case.images[1:], series_uid=case.series_uid)
        measured.before.append(sum(loaded.seconds.values()) / mvoxels)
        for index, ratios in enumerate(settings):
            found = predictor.run_windows(loaded.prepared.image, keep_ratios=[ratios])
            labels = labels_on_original_grid(found.logits, loaded.prepared.record, predictor.card)
            measured.dice[index].append(structure_dice(labels, reference.array[0], predictor.card))
            inside = sum(found.part_seconds[name] for name in ("encode", "assemble", "decode"))
            outside = max(0.0, found.part_seconds["windows"] - inside)
            measured.stitch.append(outside / max(1, found.num_windows))
        with tempfile.TemporaryDirectory() as scratch:
            result = predictor.finish(loaded, found, Path(scratch) / "labels.nii.gz")
        measured.after.append(sum(result.seconds[name] for name in _AFTER) / mvoxels)
    return measured


def structure_dice(predicted: np.ndarray, reference: np.ndarray, card: ModelCard) -> list[float]:
    """Dice of each class without background, or each region, of two label maps `[H, W, D]`; NaN if absent."""
    if card.regions:
        pairs = zip(region_masks(predicted, card.regions), region_masks(reference, card.regions), strict=True)
        return [dice_of_masks(p.astype(bool), r.astype(bool)) for p, r in pairs]
    ids = [label for label in card.labels if label]
    return [dice_of_masks(predicted == label, reference == label) for label in ids]


def time_settings(predictor: Predictor, settings: Sequence[Ratios], *, rounds: int) -> list[list[float]]:
    """Seconds of one window for each setting, `rounds` values each.

    Every round runs all settings once, each round begins with another one: what else the machine does hits
    all alike.
    """
    model = predictor.card.model
    window = torch.randn(
        1, model.in_channels, *model.roi_size, generator=torch.Generator().manual_seed(0)
    ).to(predictor.settings.device)
    runs = [predictor.network(ratios) for ratios in settings]
    seconds: list[list[float]] = [[] for _ in settings]
    with memory_reused():  # as in prediction
        for round_number in range(-_WARMUP, rounds):
            for step in range(len(settings)):
                index = (step + round_number) % len(settings)
                found = time_once(runs[index], window)
                if round_number >= 0:
                    seconds[index].append(found)
    return seconds


def paired_medians(seconds: Sequence[Sequence[float]], own: int) -> list[float]:
    """Median time of the own setting times the median ratio to it of the same round, for each setting.

    Runs of one round stand side by side, so that their ratio varies less than they do on a busy machine.
    """
    middle = statistics.median(seconds[own])
    return [
        middle * statistics.median(one / other for one, other in zip(row, seconds[own], strict=True))
        for row in seconds
    ]


def mean_dice(rows: Sequence[Sequence[float]]) -> float:
    """Mean over the structures of their means over the cases where they are defined; 0 without any."""
    table = np.array(rows, dtype=np.float64)
    means = [float(np.nanmean(column)) for column in table.T if not np.isnan(column).all()]
    return sum(means) / len(means) if means else 0.0


def difference_noise(rows: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> float | None:
    """Standard error of the mean Dice difference over pairs of case and structure; None below two pairs."""
    differences = (np.array(rows, dtype=np.float64) - np.array(own, dtype=np.float64)).ravel()
    differences = differences[~np.isnan(differences)]
    if len(differences) < 2:
        return None
    return float(differences.std(ddof=1) / math.sqrt(len(differences)))


def _curve(
    predictor: Predictor,
    dataset: Dataset,
    kind: CaseKind,
    settings: Sequence[Ratios],
    measured: Measured,
    seconds: Sequence[Sequence[float]],
) -> Calibration:
    counts = [tuple(token_counts(predictor.net, ratios)) for ratios in settings]
    own = counts.index(tuple(token_counts(predictor.net)))
    paired = paired_medians(seconds, own)
    points = [
        CurvePoint(
            keep_ratios=ratios,
            own=index == own,
            token_counts=counts[index],
            dice=round(mean_dice(measured.dice[index]), 6),
            dice_noise=difference_noise(measured.dice[index], measured.dice[own]),
            seconds_per_window=paired[index],
            seconds_p10=float(np.quantile(seconds[index], 0.1)),
            seconds_p90=float(np.quantile(seconds[index], 0.9)),
        )
        for index, ratios in enumerate(settings)
    ]
    device = torch.device(predictor.settings.device)
    return Calibration(
        weights_sha256=predictor.card.weights_sha256,
        date=datetime.now(UTC).date().isoformat(),
        dataset=dataset.name,
        cases=kind,
        num_cases=len(measured.before),
        overlap=predictor.overlap,
        machine=Machine(
            device=device.type,
            name=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
        ),
        stitch_seconds_per_window=statistics.median(measured.stitch),
        before_seconds_per_mvoxel=statistics.median(measured.before),
        after_seconds_per_mvoxel=statistics.median(measured.after),
        points=tuple(points),
    )


def _require_positive(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(
                f"{name} must be 1 or more", received=value, remedy="leave it out", where=f"--{name}"
            )
