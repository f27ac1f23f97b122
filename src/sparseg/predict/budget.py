"""Keeps a run within a memory budget: chooses what saves memory, refuses what cannot fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from sparseg.errors import ConfigError, ResourceError
from sparseg.predict.case_size import CaseSize, size_of_case
from sparseg.predict.estimate import Estimate, estimate_run, peak_bytes, size_text, survey
from sparseg.predict.footprint import FLOAT, ModelLoad
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.machine import free_memory
from sparseg.predict.predictor import Predictor
from sparseg.predict.probe import measure_model
from sparseg.predict.settings import PredictSettings
from sparseg.preprocessing.config import PreprocessConfig
from sparseg.windows.fallback import is_out_of_memory

# With less for its pages a file is read and written window by window at the speed of the disk.
MIN_PAGES = 64 * 2**20
# Fewer windows are run in less time than it takes to say how long they will take.
_FEW_WINDOWS = 16
_SURVEY_SECONDS = 5.0
_SLABS = (4, 1)
# Share of a GPU's memory that the sums may have beside the network: the allocator needs room to breathe.
_DEVICE_SHARE = 0.8


@dataclass(frozen=True)
class RunPlan:
    """How a run will be done.

    Attributes:
        settings: Those given, with what saves memory.
        estimate: What it takes; None for a run too small to ask, or of unknown sizes.
        allowed: Memory of the process in bytes.
        changes: What was changed to fit, in words.
        guard: Refuses images that do not fit; None where the user set no bound.
    """

    settings: PredictSettings
    estimate: Estimate | None = None
    allowed: int = 0
    changes: tuple[str, ...] = ()
    guard: MemoryGuard | None = None

    def expected(self) -> dict[str, Any] | None:
        """What reports say of the plan; None for a run too small to ask."""
        if self.estimate is None:
            return None
        names = ("memory_bytes", "seconds", "disk_bytes", "temporary_bytes")
        numbers = {name: getattr(self.estimate, name) for name in names}
        return {**numbers, "allowed_bytes": self.allowed, "changes": list(self.changes)}

    @property
    def fits(self) -> bool:
        """Whether the largest case fits, as far as is known."""
        return self.estimate is None or self.estimate.memory_bytes <= self.allowed


class MemoryGuard:
    """Refuses an image before it is read if it does not fit; called with what is about to be read.

    Args:
        model: The models at work.
        settings: How they run.
        preprocess: The model's preprocessing.
        max_ram: Most memory the process may take.
    """

    def __init__(
        self, model: ModelLoad, settings: PredictSettings, preprocess: PreprocessConfig, max_ram: int
    ) -> None:
        self.model, self.settings, self.preprocess, self.max_ram = model, settings, preprocess, max_ram

    def __call__(self, image: Path, channels: Sequence[Path] = (), series_uid: str | None = None) -> None:
        """Look at the headers.

        Raises:
            ConfigError: more memory would be needed than is allowed.
            VolumeError, GeometryError: a header that cannot be trusted.
        """
        size = size_of_case(image, channels, self.preprocess, self.settings.reading, series_uid=series_uid)
        needed = peak_bytes(size, self.model, self.settings, overlapping=False)
        if needed > self.max_ram:
            raise ConfigError(
                "a case must fit into the memory allowed",
                received=f"{size_text(self.max_ram)} for {' x '.join(map(str, size.shape))} voxels that take "
                f"up to {size_text(needed)}",
                remedy=f"give --max-ram {-(-needed // 10**8) / 10:.1f}G or more",
                where=image,
                code="memory-budget",
            )


def plan_run(
    predictor: Predictor,
    cases: Sequence[PredictionCase],
    *,
    max_ram: int | None = None,
    max_vram: int | None = None,
) -> RunPlan:
    """Look at all headers, run one window, and choose how to stay within the memory allowed.

    Args:
        predictor: The models at work.
        cases: Cases of the run.
        max_ram: Most memory the process may take; None takes what is free now. Cases that cannot fit do not
            count in what is chosen for the others: the plan's guard refuses them when their turn comes.
        max_vram: Most memory of a GPU; see `limit_gpu`.

    Raises:
        ResourceError: a bound is set, and not even one window fits into memory.
    """
    settings = predictor.settings
    sizes = survey(predictor, cases, seconds=None if max_ram is not None else _SURVEY_SECONDS)
    grids = [(member.card.model.roi_size, member.overlap) for member in predictor.members]
    windows = sum(size.num_windows(*grid) for size in sizes.values() for grid in grids)
    if max_ram is None and max_vram is None and windows <= _FEW_WINDOWS:
        return RunPlan(settings)
    try:
        model = measure_model(predictor)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if max_ram is None:  # no figures then; the windows will find a way themselves
            return RunPlan(settings)
        raise ResourceError(
            "one window must fit into memory",
            received=f"out of memory on {settings.device}",
            remedy="use --device cpu, or close other programs",
            code="out-of-memory",
        ) from None
    allowed = model.resident_bytes + free_memory() if max_ram is None else max_ram
    settings = replace(settings, sums_device=sums_device(sizes.values(), model, settings, max_vram))
    settings, changes = choose(list(sizes.values()), len(cases), model, settings, allowed)
    return RunPlan(
        settings,
        estimate_run(sizes, len(cases), model, settings) if sizes else None,
        allowed,
        changes,
        None if max_ram is None else MemoryGuard(model, settings, predictor.card.preprocess, max_ram),
    )


def choose(
    sizes: Sequence[CaseSize], num_cases: int, model: ModelLoad, settings: PredictSettings, allowed: int
) -> tuple[PredictSettings, tuple[str, ...]]:
    """The first of ever thriftier settings with which all cases fit that can fit at all, and what it changes.

    In this order: one case at a time; sums in a file; thinner slabs; one window per call of the network. If
    no case can fit it is the thriftiest.
    """
    ladder = list(_ladder(settings, several=num_cases > 1))
    thriftiest, _ = ladder[-1]
    possible = [size for size in sizes if _fitted(thriftiest, [size], num_cases, model, allowed)]
    if possible or not sizes:
        for candidate, changes in ladder:
            found = _fitted(candidate, possible, num_cases, model, allowed)
            if found is not None:
                return found, changes
    return replace(thriftiest, max_bytes=MIN_PAGES), ladder[-1][1]


def sums_device(
    sizes: Iterable[CaseSize], model: ModelLoad, settings: PredictSettings, max_vram: int | None = None
) -> str:
    """Where the sums lie: the GPU, if those of the largest case fit beside the network; else the CPU."""
    device = torch.device(settings.device)
    if device.type != "cuda":
        return "cpu"
    free, _ = torch.cuda.mem_get_info(device)
    room = free + torch.cuda.memory_reserved(device)
    if max_vram is not None:
        room = min(room, max_vram)
    network = torch.cuda.max_memory_allocated(device) * settings.batch_size
    floats = (model.num_classes + 1) * max((prod(size.padded_shape(model.roi)) for size in sizes), default=0)
    return settings.device if network + FLOAT * floats <= _DEVICE_SHARE * room else "cpu"


def limit_gpu(device: str, max_vram: int) -> None:
    """Let this process take no more than so much memory of a GPU; beyond it windows fall back step by step.

    Raises:
        ConfigError: no CUDA device.
    """
    if torch.device(device).type != "cuda":
        raise ConfigError(
            "a limit on GPU memory needs a CUDA device",
            received=device,
            remedy="use --max-ram for the memory of the process, or --device cuda on a machine that has one",
            where="--max-vram",
            code="max-vram",
        )
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max_vram / total), device)


def apply_plan(predictor: Predictor, plan: RunPlan) -> None:
    """Let a predictor, and its members, run as planned."""
    for one in (predictor, *predictor.members):
        one.settings = plan.settings
    predictor.guard, predictor.expected = plan.guard, plan.expected()


def _ladder(settings: PredictSettings, *, several: bool) -> Iterator[tuple[PredictSettings, tuple[str, ...]]]:
    """Ever thriftier settings and what was changed; `max_bytes` of 0 stands for as much as is left."""
    steps: list[tuple[str, Any, str]] = []
    if several and settings.cases_overlap:
        steps.append(("overlap_cases", False, "one case at a time"))
    if settings.sums_device == "cpu":
        steps.append(("max_bytes", 0, "sums in a temporary file"))
    steps += [("finish_slab", n, f"labels in slabs of {n}") for n in _SLABS if n < settings.finish_slab]
    if settings.batch_size > 1:
        steps.append(("batch_size", 1, "one window at a time"))
    values: dict[str, Any] = {}
    words: dict[str, str] = {}
    yield settings, ()
    for name, value, word in steps:
        values[name], words[name] = value, word
        yield replace(settings, **values), tuple(words.values())


def _fitted(
    settings: PredictSettings, sizes: Sequence[CaseSize], num_cases: int, model: ModelLoad, allowed: int
) -> PredictSettings | None:
    """The settings, with memory for the pages of a file, if all cases fit; else None."""
    overlapping = settings.cases_overlap and num_cases > 1
    need = max((peak_bytes(size, model, settings, overlapping=overlapping) for size in sizes), default=0)
    if settings.max_bytes != 0:
        return settings if need <= allowed else None
    # Several models have the sums of their mean in files beside those of the model at work.
    num_files = 1 if len(model.overlaps) == 1 else 2 + model.regions
    pages = (allowed - need) // num_files
    return replace(settings, max_bytes=pages) if pages >= MIN_PAGES else None
