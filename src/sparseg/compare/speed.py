"""What the networks of a comparison cost: size, arithmetic, seconds and memory, all measured in one run.

Networks take turns, pass by pass, so that a machine that slows down slows all. The weights are random, but
from file to file those of the trained models.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sparseg.benchmark.machine import commit, describe_machine
from sparseg.compare.cases import Cases
from sparseg.compare.macs import count_macs
from sparseg.compare.memory import measure_peak
from sparseg.compare.passes import NetworkSpec, Passes
from sparseg.compare.plan import Comparison, Run
from sparseg.datasets.dataset import Case
from sparseg.models.config import SegmenterConfig
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.training.network import make_network
from sparseg.volumes.atomic import write_bytes_atomically

FILE = "speed.json"
ROUNDS, WARMUP = 5, 1
MODES = ("inference", "training")
FILE_TO_FILE = "file_to_file"
_MEASURED = ("layers", "tokens", "models", "compare", "predict", "windows", "training/losses.py")

Progress = Callable[[str], None]
# Variant -> seconds of every counted round.
Rounds = dict[str, list[float]]


def measure_speeds(
    found: Comparison,
    cases: Cases,
    *,
    device: str,
    rounds: int = ROUNDS,
    broken: Collection[Run] = (),
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure all variants, or take what was measured before of the same networks on this kind of device.

    Args:
        found: The comparison; variants with a trained model are timed from file to file, too.
        cases: Its dataset.
        device: Where the networks run.
        rounds: Counted passes of every variant, after one that is not.
        broken: Runs whose model cannot be used.
        on_progress: Called with a line of text before each pass.

    Returns:
        Content of `speed.json`: `machine`, `date`, `commit`, and under `variants` a row for each: sizes,
        `macs`, and for `inference`, `training` and `file_to_file` seconds, spread and peak memory in bytes.

    Raises:
        SparsegError: a memory measurement failed.
    """
    models = trained_models(found, broken)
    case = cases.scored(found.splits, found.plan.folds[0])[0][0]
    key = _key(found, models, case.name, device, rounds)
    known = read_speeds(found)
    if known.get("key") == key:
        return known
    specs = {name: spec_of(found, cases, name, device) for name in found.plan.variants}
    # First, so that no other process runs while anything is timed.
    machine = describe_machine(torch.device(device))
    rows = {name: _row(found, cases, name, spec, on_progress) for name, spec in specs.items()}
    built = {name: Passes(spec, _roi(rows[name])) for name, spec in specs.items()}
    for mode in MODES:
        works = {
            name: passes.infer if mode == "inference" else passes.train for name, passes in built.items()
        }
        for name, seconds in take_turns(works, rounds, partial(_say, on_progress, mode)):
            rows[name][mode] |= _summary(seconds)
    del built
    for name, seconds in _file_to_file(models, case, device, rounds, on_progress):
        rows[name][FILE_TO_FILE] = _summary(seconds)
    result = {
        "key": key,
        "machine": machine,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(_MEASURED),
        "torch": torch.__version__,
        "device": device,
        "rounds": rounds,
        "warmup": WARMUP,
        "variants": rows,
    }
    content = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_bytes_atomically(found.folder / FILE, content.encode())
    return result


def take_turns(
    works: Mapping[str, Callable[[], float]], rounds: int, on_progress: Progress
) -> list[tuple[str, list[float]]]:
    """Seconds of each work in each counted round; within a round every work runs once."""
    times: Rounds = {name: [] for name in works}
    for number in range(-WARMUP, rounds):
        label = "warm-up" if number < 0 else f"round {number + 1} of {rounds}"
        for name, work in works.items():
            on_progress(f"{label}: {name}")
            seconds = work()
            if number >= 0:
                times[name].append(seconds)
    return list(times.items())


def ratio(one: Sequence[float], other: Sequence[float]) -> float | None:
    """How many times as fast the first is: the median of the rounds' ratios; None below 5 rounds."""
    pairs = list(zip(one, other, strict=True))  # round by round: all variants ran in all rounds
    return median(b / a for a, b in pairs) if len(pairs) >= ROUNDS else None


def trained_models(found: Comparison, broken: Collection[Run] = ()) -> dict[str, Path]:
    """Variant -> model of its first run that has stored one which can be used."""
    models: dict[str, Path] = {}
    for run in found.runs:
        if run not in broken and found.model(run).is_dir():
            models.setdefault(run.variant, found.model(run))
    return models


def spec_of(found: Comparison, cases: Cases, name: str, device: str) -> NetworkSpec:
    """The network of a variant for the dataset."""
    config, dataset = found.plan.variants[name], cases.dataset
    return NetworkSpec(
        preset=config.preset,
        model=config.model,
        in_channels=len(dataset.channels),
        num_classes=dataset.num_classes,
        regions=bool(dataset.regions),
        batch=config.batch_size,
        precision=config.precision,
        device=device,
    )


def _row(
    found: Comparison, cases: Cases, name: str, spec: NetworkSpec, on_progress: Progress
) -> dict[str, Any]:
    """Sizes, arithmetic and memory of a variant."""
    with torch.device("meta"):
        net = make_network(cases.dataset, found.plan.variants[name])
    config = net.config
    macs, macs_parts = count_macs(net)
    row: dict[str, Any] = {
        "preset": spec.preset,
        "dtype": spec.precision,
        "roi": list(config.roi_size),
        "patch_size": None if config.patch_size is None else list(config.patch_size),
        "keep_ratios": list(config.keep_ratios) if isinstance(config, SegmenterConfig) else [],
        "token_counts": net.token_counts(),
        "params": sum(parameter.numel() for parameter in net.parameters()),
        "inference": {"batch": 1, "macs": macs, "macs_parts": macs_parts},
        "training": {"batch": spec.batch, "macs": count_macs(net, batch=spec.batch, training=True)[0]},
    }
    for mode in MODES:
        on_progress(f"memory, {mode}: {name}")
        row[mode]["peak_memory_bytes"] = measure_peak(spec, config.roi_size, mode)
    return row


def _file_to_file(
    models: Mapping[str, Path], case: Case, device: str, rounds: int, on_progress: Progress
) -> list[tuple[str, list[float]]]:
    """From the image file to the label file, the network being in memory."""
    settings = PredictSettings(device=device)
    predictors = {name: Predictor.from_folder(model, settings) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:

        def work(name: str) -> float:
            start = time.perf_counter()
            predictors[name].predict_file(
                case.images[0],
                Path(folder) / "labels.nii.gz",
                channels=case.images[1:],
                series_uid=case.series_uid,
            )
            return time.perf_counter() - start

        works = {name: partial(work, name) for name in predictors}
        return take_turns(works, rounds, partial(_say, on_progress, "file to file"))


def _say(on_progress: Progress, what: str, line: str) -> None:
    on_progress(f"{what}, {line}")


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    p10, p90 = np.percentile(seconds, (10, 90)).tolist()
    return {"seconds": median(seconds), "p10": p10, "p90": p90, "seconds_all": list(seconds)}


def _roi(row: Mapping[str, Any]) -> tuple[int, int, int]:
    a, b, c = row["roi"]
    return (a, b, c)


def _key(found: Comparison, models: Mapping[str, Path], case: str, device: str, rounds: int) -> str:
    """Hash of what the numbers depend on, the machine aside."""
    variants = {name: config.model_dump(mode="json") for name, config in found.plan.variants.items()}
    content = {"variants": variants, "models": sorted(models), "case": case, "device": device}
    return hashlib.sha256(json.dumps({**content, "rounds": rounds}, sort_keys=True).encode()).hexdigest()


def read_speeds(found: Comparison) -> dict[str, Any]:
    """What was measured before; nothing if it cannot be read, which costs only time."""
    try:
        content = json.loads((found.folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(content) if isinstance(content, dict) else {}
