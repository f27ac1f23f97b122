"""One network of a comparison, ready for single inference and training passes on random windows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparseg.benchmark.timing import make_adamw, random_case, synchronize
from sparseg.models.build import build_segmenter
from sparseg.training.losses import make_loss


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What a network is built and measured from; plain values, which a process can be handed.

    Attributes:
        preset: Named model.
        model: Overrides of the preset.
        in_channels: C.
        num_classes: K.
        regions: Whether the outputs are overlapping regions.
        batch: Crops of a training step.
        precision: fp32, bf16 or fp16 autocast.
        device: "cpu", "cuda" or "mps".
    """

    preset: str
    model: Mapping[str, Any]
    in_channels: int
    num_classes: int
    regions: bool
    batch: int
    precision: str
    device: str

    def build(self) -> torch.nn.Module:
        """The network with random weights, on the device that is current."""
        sizes = {"in_channels": self.in_channels, "num_classes": self.num_classes}
        net: torch.nn.Module = build_segmenter(self.preset, **{**self.model, **sizes})
        return net

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


class Passes:
    """Passes of one network.

    Args:
        spec: The network.
        roi: Window in voxels.
    """

    def __init__(self, spec: NetworkSpec, roi: tuple[int, int, int]) -> None:
        self.spec, self.device = spec, torch.device(spec.device)
        self.net = spec.build().to(self.device)
        image, target = random_case(spec.in_channels, spec.num_classes, roi, batch=spec.batch)
        if spec.regions:
            masks = [target == number for number in range(spec.num_classes)]
            target = torch.cat(masks, dim=1).float()
        self.image, self.target = image.to(self.device), target.to(self.device)
        self.loss = make_loss(regions=spec.regions)
        self.optimizer = make_adamw(self.net)

    def infer(self) -> float:
        """Seconds of one window, without gradients."""
        self.net.eval()
        return self._timed(lambda: self._forward(self.image[:1]))

    def train(self) -> float:
        """Seconds of one training step of a batch: forward, loss, backward, AdamW."""
        self.net.train()
        return self._timed(self._step)

    def make_optimizer_state(self) -> None:
        """What every step but the first of a run finds in place."""
        for parameter in self.net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _timed(self, work: Any) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        work()
        synchronize(self.device)
        return time.perf_counter() - start

    def _forward(self, image: Tensor) -> None:
        with torch.inference_mode(), self._autocast():
            self.net(image)

    def _step(self) -> None:
        with self._autocast():
            loss = self.loss(self.net(self.image), self.target)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.spec.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.spec.precision != "fp32")
