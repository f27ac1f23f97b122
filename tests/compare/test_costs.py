"""Arithmetic of a row against that of the benchmark, and what the passes do."""

from __future__ import annotations

import pytest
import torch

from compare.conftest import BASE
from sparseg.benchmark.macs import count_macs as count_for_benchmark
from sparseg.compare.macs import count_macs
from sparseg.compare.passes import NetworkSpec, Passes
from sparseg.models.build import build_segmenter
from sparseg.models.config import SegmenterConfig


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_macs_are_those_of_the_benchmark(mode: str) -> None:
    with torch.device("meta"):
        net = build_segmenter("test_tiny", feature_size=2)
    assert isinstance(net.config, SegmenterConfig)
    total, parts = count_macs(net, batch=2, training=mode == "training")
    expected, by_part = count_for_benchmark("sparse", net.config, batch=2, mode=mode)
    assert total == expected
    assert parts == dict(zip(("encode", "assemble", "decode"), by_part.values(), strict=True))
    assert min(parts.values()) > 0


def test_peers_are_counted_as_a_whole() -> None:
    with torch.device("meta"):
        net = build_segmenter("peer_segresnet_tiny", roi_size=(16, 16, 16))
    total, parts = count_macs(net)
    assert parts == {"decode": total}
    assert total > 10**6


@pytest.mark.parametrize("regions", [False, True])
def test_a_training_pass_steps_and_an_inference_pass_does_not(regions: bool) -> None:
    spec = NetworkSpec(
        preset="test_tiny", model=BASE["model"], in_channels=1, num_classes=3, regions=regions,
        batch=2, precision="fp32", device="cpu",
    )  # fmt: skip
    passes = Passes(NetworkSpec(**spec.as_json()), (16, 16, 16))
    assert passes.target.shape == (2, 3 if regions else 1, 16, 16, 16)
    before = [parameter.detach().clone() for parameter in passes.net.parameters()]
    assert passes.infer() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, passes.net.parameters(), strict=True))
    assert passes.train() > 0
    assert not all(torch.equal(a, b) for a, b in zip(before, passes.net.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in passes.net.parameters())
