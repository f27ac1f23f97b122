"""Timed forward passes and training steps; the clock stands outside the models.

The split into parts comes from forward hooks on the finished model: encoder until its encoder returns,
decoder from where its decoder is called, assembly in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseg.benchmark.variants import Variant

Loss = Callable[[Tensor, Tensor], Tensor]


class Measured(NamedTuple):
    """One pass: seconds on the clock, processor seconds of all threads, seconds of each part.

    Processor seconds do not grow while other programs hold the cores, so with one thread they tell a busy
    machine from a slow model.
    """

    seconds: float
    cpu_seconds: float
    parts: dict[str, float]


class Laps:
    """Times at named moments of one pass.

    Args:
        device: Work queued there is waited for at every moment.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: dict[str, float] = {}
        self.cpu_times: dict[str, float] = {}

    def __call__(self, moment: str) -> None:
        """Record `moment` now."""
        synchronize(self.device)
        self.times[moment] = time.perf_counter()
        self.cpu_times[moment] = time.process_time()

    def between(self, start: str, end: str, parts: dict[str, float]) -> Measured:
        """The pass from one moment to another, with parts found elsewhere."""
        return Measured(
            self.times[end] - self.times[start], self.cpu_times[end] - self.cpu_times[start], parts
        )

    def parts(self) -> dict[str, float]:
        """Seconds that ended at each moment but the first, in order; assembly 0 where a model has none.

        A network without parts has `network` in place of encoder, assembly and decoder.
        """
        moments = list(self.times)
        spent = {end: self.times[end] - self.times[start] for start, end in pairwise(moments)}
        if "encoder" not in spent:
            return {"network": spent.pop("decoder"), **spent}
        if "assembly" not in spent:
            spent = {"encoder": spent.pop("encoder"), "assembly": 0.0, **spent}
        return spent


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def borders(variant: Variant, laps: Laps) -> Iterator[None]:
    """Within, every forward pass of the variant records the ends of encoder and assembly."""
    handles = []
    if variant.encoder is not None:
        handles.append(variant.encoder.register_forward_hook(lambda *_: laps("encoder")))
    if variant.decoder is not None:
        handles.append(variant.decoder.register_forward_pre_hook(lambda *_: laps("assembly")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class InferenceTimer:
    """Forward passes without gradients, in evaluation mode.

    Args:
        variant: Model, on `device`.
        image: `[B, C, *roi]` on `device`.
        device: Where it runs.
    """

    def __init__(self, variant: Variant, image: Tensor, device: torch.device) -> None:
        self.variant, self.image, self.device = variant, image, device

    def measure(self) -> Measured:
        """Seconds of one undisturbed pass, and the parts of another one right after it."""
        self.variant.net.eval()
        with torch.inference_mode():
            total = Laps(self.device)
            total("start")
            self.variant.net(self.image)
            total("end")
            laps = Laps(self.device)
            with borders(self.variant, laps):
                laps("start")
                self.variant.net(self.image)
                laps("decoder")
        return total.between("start", "end", laps.parts())


class TrainingTimer:
    """Whole training steps: forward, loss, backward, AdamW.

    Args:
        variant: Model, on `device`.
        image: `[B, C, *roi]` on `device`.
        target: `[B, 1, *roi]` class ids on `device`.
        loss: Loss of logits and target.
        device: Where it runs.
    """

    def __init__(
        self, variant: Variant, image: Tensor, target: Tensor, loss: Loss, device: torch.device
    ) -> None:
        self.variant, self.image, self.target = variant, image, target
        self.loss, self.device = loss, device
        self.optimizer = make_adamw(variant.net)

    def measure(self) -> Measured:
        """Seconds of one step and its parts.

        On the CPU a lap costs a clock read, so one step gives both; elsewhere laps make the host wait, so the
        parts come from a second step.
        """
        laps = Laps(self.device)
        if self.device.type == "cpu":
            with borders(self.variant, laps):
                self.step(laps)
            return laps.between("start", "optimizer", laps.parts())
        total = Laps(self.device)
        total("start")
        self.step(lambda _: None)
        total("end")
        with borders(self.variant, laps):
            self.step(laps)
        return total.between("start", "end", laps.parts())

    def step(self, lap: Callable[[str], None]) -> None:
        """One training step; calls `lap` behind each of its parts."""
        self.variant.net.train()
        lap("start")
        logits = self.variant.net(self.image)
        lap("decoder")
        loss = self.loss(logits, self.target)
        lap("loss")
        loss.backward()  # type: ignore[no-untyped-call]
        lap("backward")
        self.optimizer.step()
        # Here, not before the forward pass, so that waiting variants hold no gradients.
        self.optimizer.zero_grad(set_to_none=True)
        lap("optimizer")


def make_adamw(net: nn.Module) -> torch.optim.AdamW:
    """AdamW with the paper's betas and decay; a rate so small that the weights stay where they are."""
    return torch.optim.AdamW(net.parameters(), lr=1e-8, betas=(0.9, 0.95), weight_decay=0.05)


def random_case(
    in_channels: int, num_classes: int, roi_size: tuple[int, int, int], *, batch: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Seeded image `[B, C, *roi]` (standard normal) and target `[B, 1, *roi]` (uniform class ids)."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, in_channels, *roi_size, generator=generator)
    target = torch.randint(num_classes, (batch, 1, *roi_size), generator=generator)
    return image, target
