"""Memory of a training step, and the network that fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset
from sparseg.planning.grid import choose_patch, choose_roi
from sparseg.planning.measure import seconds_per_step
from sparseg.planning.memory import FIXED_BYTES, size_text, training_bytes, usable_bytes
from sparseg.planning.network import Network, choose_network

TINY = SegmenterConfig(**preset("test_tiny"))
SIZES = {"fast_tiny_p8": 10, "fast_small_p8": 30, "fast_base_p8": 100}


def cost(config: SegmenterConfig, batch: int) -> int:
    """Weights by width, activations by window: 10, 20, 40 per crop of 96 voxels an edge."""
    per_crop = config.embed_dim / 192 * 10 * config.roi_size[0] / 96
    return int(per_crop * batch)


def choose(limit: int, device: str = "cuda", **changes: Any) -> Network:
    options = {"preset": None, "device": device, "limit": limit, "cost": cost} | changes
    return choose_network([(200, 200, 200)], (8, 8, 8), {"num_classes": 3}, **options)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1000, ("fast_base_p8", 8, 96)),
        (119, ("fast_base_p8", 2, 96)),
        (120, ("fast_base_p8", 3, 96)),
        (79, ("fast_small_p8", 3, 96)),
        (39, ("fast_tiny_p8", 3, 96)),
        (19, ("fast_tiny_p8", 1, 96)),  # two crops fit no preset; one of the small one takes 20
        (9, ("fast_tiny_p8", 1, 64)),  # nor one crop of 96
    ],
)
def test_the_largest_that_fits_a_gpu(limit: int, expected: tuple[str, int, int]) -> None:
    found = choose(limit)
    assert (found.preset, found.batch_size, found.config.roi_size[0]) == expected
    assert found.fits


def test_the_cpu_takes_the_smallest_with_two_crops() -> None:
    found = choose(1000, device="cpu")
    assert (found.preset, found.batch_size) == ("fast_tiny_p8", 2)
    assert choose(1000, device="cpu", preset="fast_base_p8").preset == "fast_base_p8"
    assert choose(19, device="cpu").batch_size == 1


def test_nothing_fits() -> None:
    found = choose(1)
    assert not found.fits
    assert (found.batch_size, found.config.roi_size) == (1, (32, 32, 32))
    assert "more" not in found.why_preset
    assert "even one crop takes about 0 MiB of memory, 0 MiB are usable" in found.why_batch


def test_smaller_windows_are_explained() -> None:
    assert "to save memory" in choose(9).why_roi
    assert "to save memory" not in choose(1000).why_roi


def test_bytes_follow_from_parameters_and_saved_tensors() -> None:
    one, two = (training_bytes(TINY, batch, regions=False) for batch in (1, 2))
    with torch.device("meta"):
        from sparseg.models.build import segmenter_from_config

        count = sum(p.numel() for p in segmenter_from_config(TINY).parameters())
    assert one - (two - one) == FIXED_BYTES + 16 * count
    wide = TINY.model_copy(update={"roi_size": (32, 16, 16)})
    assert training_bytes(wide, 1, regions=False) - FIXED_BYTES > 1.5 * (one - FIXED_BYTES - 16 * count)


def test_what_is_counted_is_what_a_real_step_saves() -> None:
    """The same hooks on a model with content see the same bytes, but for integers the meta pass may skip."""
    from sparseg.models.build import segmenter_from_config
    from sparseg.training.losses import make_loss

    net = segmenter_from_config(TINY)
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    saved: dict[int, Any] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    image, target = torch.randn(1, 1, 16, 16, 16), torch.randint(3, (1, 1, 16, 16, 16))
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        make_loss(regions=False)(net(image), target)
    sizes = sorted(storage.nbytes() for key, storage in saved.items() if key not in weights)
    count = sum(p.numel() for p in net.parameters())
    estimate = training_bytes(TINY, 1, regions=False) - FIXED_BYTES - 16 * count
    assert estimate == pytest.approx(sum(sizes) + sum(sizes[-2:]), rel=0.1)


def test_usable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    gpu = SimpleNamespace(total_memory=1000)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    assert usable_bytes("cuda") == 850
    assert 0 < usable_bytes("cpu") <= 0.7 * psutil.virtual_memory().total
    assert size_text(2**30) == "1.0 GiB"
    assert size_text(2**29) == "512 MiB"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (0.7, 0.7, 5.0), (0.3, 0.3, 9.0)])
@pytest.mark.parametrize("base", [4, 8, 16])
@pytest.mark.parametrize("shape", [(9, 9, 3), (60, 40, 30)])
def test_every_chosen_window_passes_the_decoder(
    spacing: tuple[float, float, float], base: int, shape: tuple[int, int, int]
) -> None:
    patch = choose_patch(spacing, base).value
    roi = choose_roi([shape], patch, 6).value
    changes = {"patch_size": patch, "roi_size": roi, "depth": 1, "pruning_stages": ()}
    config = SegmenterConfig(**{**preset("test_tiny"), **changes})
    assert training_bytes(config, 1, regions=True) > FIXED_BYTES


@pytest.mark.parametrize("regions", [False, True])
def test_steps_are_timed_without_touching_the_random_state(regions: bool) -> None:
    before = torch.random.get_rng_state()
    seconds = seconds_per_step(TINY, 1, regions=regions, device="cpu")
    assert seconds is not None
    assert 0 < seconds < 10
    assert torch.equal(before, torch.random.get_rng_state())
