"""Benchmark of the network alone: sparse, dense patch 8, dense patch 16 and a plain sparse implementation.

All variants take turns in one process (A B C D, A B C D, ...), so that a machine that slows down slows all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sparseg.benchmark.machine import commit, cpu_threads, describe_machine
from sparseg.benchmark.macs import count_macs
from sparseg.benchmark.memory import measure_peak_memory
from sparseg.benchmark.report import (
    NO_QUALITY,
    OTHER_QUALITY,
    ratio_to_sparse,
    read_quality,
    require_writable,
    table_notes,
    table_rows,
    write_json,
)
from sparseg.benchmark.timing import InferenceTimer, Measured, TrainingTimer, random_case
from sparseg.benchmark.variants import (
    MODES,
    Variant,
    bench_config,
    build_variant,
    choose_variants,
    plain_name,
)
from sparseg.errors import ConfigError
from sparseg.models.config import SegmenterConfig
from sparseg.shapes import Triple
from sparseg.training.losses import make_loss

__all__ = [
    "bench_model",
    "bench_to_file",
    "ratio_to_sparse",
    "read_quality",
    "table_notes",
    "table_rows",
    "write_json",
]

Progress = Callable[[str], None]
# Outputs of these two are equal, so a quality measured for one stands for both; dense models have others.
_SPARSE_OUTPUT = ("sparse", "naive_sparse")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result: one variant in one mode. Seconds per window batch, MACs per batch, bytes."""

    variant: str
    mode: str
    seconds: float
    seconds_all: list[float]
    p10: float
    p90: float
    cpu_seconds: float
    cpu_seconds_all: list[float]
    parts: dict[str, float]
    macs: int
    macs_parts: dict[str, int]
    token_counts: list[int]
    peak_memory_bytes: int
    params: int
    quality: dict[str, Any] | None
    quality_note: str
    preset: str
    roi: Triple
    patch_size: Triple | None
    batch: int
    keep_ratios: tuple[float, ...]
    pairs: int
    warmup: int
    dtype: str
    device: str
    torch: str
    commit: str | None
    date: str
    left_out: dict[str, str]


def bench_to_file(
    preset: str,
    json_file: Path | None = None,
    *,
    quality_file: Path | None = None,
    on_progress: Progress = lambda _: None,
    **options: Any,
) -> dict[str, Any]:
    """Run `bench_model` and store its result; what `sparseg bench model` calls.

    Args:
        preset: Name of the model.
        json_file: Where the result goes; None stores nothing.
        quality_file: `metrics.json` of an evaluation, whose Dice is to stand beside the times.
        on_progress: Called with a line of text before each pass.
        **options: Further arguments of `bench_model`.

    Raises:
        ConfigError: unknown preset, variant or mode; a file that cannot be read or written.
    """
    quality = None if quality_file is None else read_quality(quality_file)
    if json_file is not None:
        require_writable(Path(json_file))
    result = bench_model(preset, quality=quality, on_progress=on_progress, **options)
    if json_file is not None:
        write_json(json_file, result)
    return result


def bench_model(
    preset: str,
    *,
    pairs: int = 5,
    warmup: int = 1,
    batch: int = 1,
    modes: Sequence[str] = MODES,
    device: str = "cpu",
    threads: int | None = None,
    variants: Sequence[str] | None = None,
    compiled: Sequence[str] = ("none",),
    quality: Mapping[str, Any] | None = None,
    seed: int = 0,
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure the variants of a preset against each other.

    Args:
        preset: Name of a model with pruning stages.
        pairs: Measured rounds; each runs every variant once, and ratios are taken within a round.
        warmup: Rounds before them that are not counted.
        batch: Windows B per pass.
        modes: "inference" (forward pass) and "training" (forward, Dice + cross-entropy, backward, AdamW).
        device: "cpu" or "cuda".
        threads: CPU threads; None leaves torch's number.
        variants: Names out of `VARIANTS`, `RIVALS`, `PEERS` and `GROUPS`; None takes all of `VARIANTS` that
            fit the preset.
        compiled: Out of `COMPILED`; every variant is measured with each of them. Compiling takes place in the
            warm-up, of which there must be at least one round.
        quality: Quality of trained weights of this preset (see `read_quality`).
        seed: Of weights, image and target.
        on_progress: Called with a line of text before each pass.

    Returns:
        `machine` and `rows`, one per variant and mode, ready for `write_json`; see docs/how-to/benchmark.md.

    Raises:
        ConfigError: unknown preset, variant, mode or device; a count below 1.
        SparsegError: a memory measurement failed.
    """
    config = bench_config(preset)
    names, left_out = choose_variants(config, variants, compiled)
    _check(pairs, warmup, batch, modes, least_warmup=0 if set(compiled) == {"none"} else 1)
    plan = _Plan(
        preset=preset,
        config=config,
        names=names,
        left_out=left_out,
        modes=tuple(modes),
        pairs=pairs,
        warmup=warmup,
        batch=batch,
        device=_device(device),
        seed=seed,
    )
    with cpu_threads(threads):
        machine = describe_machine(plan.device)
        # First, so that no subprocess runs while anything is timed.
        peaks = _measure_memory(plan, on_progress)
        built = {name: build_variant(name, config, seed) for name in names}
        times = _measure_times(plan, built, on_progress)
    return {"machine": machine, "rows": _rows(plan, built, times, peaks, quality)}


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is measured: checked arguments of `bench_model`."""

    preset: str
    config: SegmenterConfig
    names: list[str]
    left_out: dict[str, str]
    modes: tuple[str, ...]
    pairs: int
    warmup: int
    batch: int
    device: torch.device
    seed: int


Key = tuple[str, str]


def _measure_memory(plan: _Plan, on_progress: Progress) -> dict[Key, int]:
    """Peak memory in bytes by mode and variant."""
    peaks = {}
    for mode in plan.modes:
        for name in plan.names:
            on_progress(f"memory, {mode}: {name}")
            peaks[mode, name] = measure_peak_memory(
                plan.preset, name, mode, batch=plan.batch, device=plan.device.type
            )
    return peaks


def _measure_times(
    plan: _Plan, built: Mapping[str, Variant], on_progress: Progress
) -> dict[Key, list[Measured]]:
    """Seconds and parts of every counted pass, by mode and variant, in rounds over the variants."""
    config, device = plan.config, plan.device
    case = random_case(
        config.in_channels, config.num_classes, config.roi_size, batch=plan.batch, seed=plan.seed
    )
    image, target = (tensor.to(device) for tensor in case)
    loss = make_loss(regions=False)
    for variant in built.values():
        variant.net.to(device)
    times: dict[Key, list[Measured]] = {(mode, name): [] for mode in plan.modes for name in built}
    for mode in plan.modes:
        timers: dict[str, InferenceTimer | TrainingTimer] = {
            name: InferenceTimer(variant, image, device)
            if mode == "inference"
            else TrainingTimer(variant, image, target, loss, device)
            for name, variant in built.items()
        }
        for number in range(-plan.warmup, plan.pairs):
            label = "warm-up" if number < 0 else f"pair {number + 1} of {plan.pairs}"
            for name, timer in timers.items():
                on_progress(f"{mode}, {label}: {name}")
                measured = timer.measure()
                if number >= 0:
                    times[mode, name].append(measured)
    return times


def _rows(
    plan: _Plan,
    built: Mapping[str, Variant],
    times: Mapping[Key, list[Measured]],
    peaks: Mapping[Key, int],
    quality: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """One row per mode and variant, as they go into the file."""
    shared: dict[str, Any] = {
        "preset": plan.preset,
        "roi": plan.config.roi_size,
        "batch": plan.batch,
        "pairs": plan.pairs,
        "warmup": plan.warmup,
        "dtype": "float32",
        "device": plan.device.type,
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "left_out": plan.left_out,
    }
    rows = []
    for (mode, name), measured in times.items():
        variant = built[name]
        macs, macs_parts = count_macs(name, plan.config, batch=plan.batch, mode=mode)
        known = quality if plain_name(name) in _SPARSE_OUTPUT else None
        row = Row(
            **_summary(measured),
            variant=name,
            mode=mode,
            macs=macs,
            macs_parts=macs_parts,
            token_counts=variant.token_counts,
            peak_memory_bytes=peaks[mode, name],
            params=sum(parameter.numel() for parameter in variant.net.parameters()),
            quality=None if known is None else dict(known),
            quality_note=NO_QUALITY if known is None else OTHER_QUALITY,
            patch_size=variant.patch_size,
            keep_ratios=variant.keep_ratios,
            **shared,
        )
        rows.append(asdict(row))
    return rows


def _summary(measured: list[Measured]) -> dict[str, Any]:
    seconds = [one.seconds for one in measured]
    p10, p90 = np.percentile(seconds, (10, 90)).tolist()
    return {
        "seconds": median(seconds),
        "seconds_all": seconds,
        "p10": p10,
        "p90": p90,
        "cpu_seconds": median(one.cpu_seconds for one in measured),
        "cpu_seconds_all": [one.cpu_seconds for one in measured],
        "parts": {part: median(one.parts[part] for one in measured) for part in measured[0].parts},
    }


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(
            "the device must be cpu, or cuda where torch finds one",
            received=name,
            where="device",
            remedy="use --device cpu",
        )
    return torch.device(name)


def _check(pairs: int, warmup: int, batch: int, modes: Sequence[str], *, least_warmup: int) -> None:
    for name, value, least in (("pairs", pairs, 1), ("warmup", warmup, least_warmup), ("batch", batch, 1)):
        if value < least:
            raise ConfigError(
                f"{name} must be at least {least}", received=value, where=name, remedy="give a larger number"
            )
    if not modes or set(modes) - set(MODES):
        raise ConfigError(
            f"a mode must be one of {', '.join(MODES)}",
            received=list(modes),
            where="modes",
            remedy="e.g. --modes inference",
        )
