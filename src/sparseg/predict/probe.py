"""One window through the network: how long it takes and how much memory."""

from __future__ import annotations

import time

import torch

from sparseg.allocator import memory_reused
from sparseg.predict.footprint import ModelLoad
from sparseg.predict.machine import PeakMeter, resident_bytes
from sparseg.predict.predictor import Predictor
from sparseg.preprocessing.config import MRIntensity


def measure_model(predictor: Predictor) -> ModelLoad:
    """Run one window through every model of a predictor, then one or two more.

    The first run warms up and shows the memory. The second one is timed; with batches it takes two windows,
    which shows what each further one needs. On a GPU the memory of a window is none of the CPU's.
    """
    card, settings = predictor.card, predictor.settings
    count = min(2, settings.batch_size)
    first, _ = _run_once(predictor, 1)
    resident = resident_bytes()
    second, seconds = _run_once(predictor, count)
    one = max(0, first - resident)
    each = min(one, max(0, second - first)) if count > 1 else one
    on_cpu = settings.device == "cpu"
    return ModelLoad(
        resident_bytes=resident,
        window_bytes=each if on_cpu else 0,
        batch_bytes=one - each if on_cpu else 0,
        seconds_per_window=tuple(value / count for value in seconds),
        rois=tuple(member.card.model.roi_size for member in predictor.members),
        num_classes=card.model.num_classes,
        overlaps=tuple(member.overlap for member in predictor.members),
        label_bytes=1 if max(card.labels) < 256 else 2,
        regions=bool(card.regions),
        standardises=isinstance(card.preprocess.intensity, MRIntensity),
    )


def _run_once(predictor: Predictor, count: int) -> tuple[int, list[float]]:
    """Highest memory of the process, and seconds of so many of its windows at once through each model."""
    device = torch.device(predictor.settings.device)
    seconds = []
    meter = PeakMeter()
    with torch.inference_mode(), memory_reused():
        for member in predictor.members:
            model, generator = member.card.model, torch.Generator().manual_seed(0)
            windows = torch.randn(count, model.in_channels, *model.roi_size, generator=generator)
            start = time.perf_counter()
            # The copy back waits for the device, too.
            member.network(member.keep_ratios)(windows.to(device)).float().cpu()
            seconds.append(time.perf_counter() - start)
    return meter.peak, seconds
