"""One window through the network: how long it takes and how much memory."""

from __future__ import annotations

import time

import torch

from sparseg.predict.footprint import ModelLoad
from sparseg.predict.machine import PeakMeter, resident_bytes
from sparseg.predict.predictor import Predictor
from sparseg.preprocessing.config import MRIntensity


def measure_model(predictor: Predictor) -> ModelLoad:
    """Run one window through every model of a predictor, twice: the first run warms up and shows the memory.

    On a GPU the memory of the window is the GPU's own business; the CPU's share is 0.
    """
    card, on_cpu = predictor.card, predictor.settings.device == "cpu"
    meter = PeakMeter()
    for member in predictor.members:
        _run_once(member)
    peak, resident = meter.peak, resident_bytes()
    return ModelLoad(
        resident_bytes=resident,
        window_bytes=max(0, peak - resident) if on_cpu else 0,
        seconds_per_window=sum(_run_once(member) for member in predictor.members) / len(predictor.members),
        roi=card.model.roi_size,
        num_classes=card.model.num_classes,
        overlaps=tuple(member.overlap for member in predictor.members),
        label_bytes=1 if max(card.labels) < 256 else 2,
        regions=bool(card.regions),
        standardises=isinstance(card.preprocess.intensity, MRIntensity),
    )


def _run_once(member: Predictor) -> float:
    """Seconds of one window."""
    device = torch.device(member.settings.device)
    generator = torch.Generator().manual_seed(0)
    window = torch.randn(1, member.card.model.in_channels, *member.card.model.roi_size, generator=generator)
    with torch.inference_mode():
        start = time.perf_counter()
        # The copy back waits for the device, too.
        member.network(member.keep_ratios)(window.to(device)).float().cpu()
    return time.perf_counter() - start
