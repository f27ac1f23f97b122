"""How long a training step takes on this device: by doing it."""

from __future__ import annotations

import time
from statistics import median

import torch

from sparseg.models.build import segmenter_from_config
from sparseg.models.network import NetworkConfig
from sparseg.training.config import OptimizerConfig
from sparseg.training.losses import make_loss
from sparseg.training.optimizer import make_optimizer

NUM_STEPS = 2


def seconds_per_step(
    config: NetworkConfig,
    batch_size: int,
    *,
    regions: bool,
    device: str,
    precision: str = "fp32",
    seed: int = 0,
) -> float | None:
    """Do one training step to warm up and two on the clock, on random numbers; return the median in seconds.

    None if the memory of a GPU did not suffice.

    Reading and augmenting crops is not part of it. The global random state is left as it was.

    Args:
        config: The model.
        batch_size: Crops per step.
        regions: Whether the outputs are overlapping regions.
        device: Where it runs.
        precision: "fp32", or "bf16" for mixed precision.
        seed: Of weights and crops.
    """
    place = torch.device(device)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            return median(_time_steps(config, batch_size, regions, place, precision)[1:])
        except torch.OutOfMemoryError:
            return None


def _time_steps(
    config: NetworkConfig, batch_size: int, regions: bool, place: torch.device, precision: str
) -> list[float]:
    net = segmenter_from_config(config).to(place).train()
    optimizer = make_optimizer(net, OptimizerConfig(), config.depth, config.pruning_stages)
    loss_of = make_loss(regions=regions)
    image = torch.randn(batch_size, config.in_channels, *config.roi_size).to(place)
    if regions:
        target = torch.randint(2, (batch_size, config.num_classes, *config.roi_size)).float().to(place)
    else:
        target = torch.randint(config.num_classes, (batch_size, 1, *config.roi_size)).to(place)
    seconds = []
    for _ in range(1 + NUM_STEPS):
        started = time.perf_counter()
        with torch.autocast(place.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(net(image), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        # Work is only queued on a GPU; the clock must wait for it.
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        seconds.append(time.perf_counter() - started)
    return seconds
