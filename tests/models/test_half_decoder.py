"""The decoder at half resolution: what enters, what leaves, and that nothing is convolved at full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparseg.errors import ShapeError
from sparseg.models.half_decoder import HalfResolutionDecoder, Pixels
from sparseg.models.segmenter import SparseUNETR
from sparseg.shapes import Triple

E, C, K = 12, 2, 3


def decoder(patch: Triple, **options: Any) -> HalfResolutionDecoder:
    torch.manual_seed(0)
    return HalfResolutionDecoder(C, K, E, feature_size=2, patch_size=patch, **options)


def maps(grid: Triple, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    *skips, final = (torch.randn(1, E, *grid, generator=generator) for _ in range(4))
    return skips, final


@pytest.mark.parametrize(
    ("patch", "grid", "used"),
    [
        ((8, 8, 8), (3, 2, 2), (1,)),
        ((4, 4, 4), (5, 3, 4), (1,)),
        ((16, 16, 16), (2, 1, 1), (1, 2)),
        ((8, 8, 4), (2, 3, 2), (1,)),
    ],
)
def test_logits_of_the_image_grid_from_the_maps_it_needs(
    patch: Triple, grid: Triple, used: tuple[int, ...]
) -> None:
    net = decoder(patch).eval()
    size = tuple(n * edge for n, edge in zip(grid, patch, strict=True))
    image, (skips, final) = torch.randn(1, C, *size), maps(grid)
    with torch.no_grad():
        logits = net(image, skips, final)
        assert logits.shape == (1, K, *size)
        assert (net(image, skips, final + torch.randn_like(final)) - logits).abs().max() > 1e-3
        assert (net(image + torch.randn_like(image), skips, final) - logits).abs().max() > 1e-3
        for number in range(3):
            others = [skip + (number == n) * torch.randn_like(skip) for n, skip in enumerate(skips)]
            changed = bool((net(image, others, final) - logits).abs().max() > 1e-3)
            assert changed is (number in used)


def test_no_convolution_sees_the_resolution_of_the_image() -> None:
    net, seen = decoder((8, 8, 8)).eval(), []

    def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            seen.append(arguments[0].shape[2:])

    for part in net.modules():
        part.register_forward_pre_hook(look)
    skips, final = maps((2, 2, 2))
    net(torch.randn(1, C, 16, 16, 16), skips, final)
    assert len(seen) >= 8
    assert max(seen) == (8, 8, 8)


def test_pixels_stack_the_voxels_of_each_step_in_order() -> None:
    pixels = Pixels(2, 4, (2, 2, 1))
    taken: list[Tensor] = []
    pixels.block.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[0]))
    image = torch.arange(2.0 * 4 * 4 * 3).reshape(1, 2, 4, 4, 3)
    pixels(image)
    assert taken[0].shape == (1, 8, 2, 2, 3)
    for channel in range(2):
        for a in range(2):
            for b in range(2):
                wanted = image[0, channel, a::2, b::2]
                assert torch.equal(taken[0][0, channel * 4 + a * 2 + b], wanted)


def test_a_window_whose_coarsest_level_is_one_voxel_is_refused() -> None:
    skips, final = maps((1, 1, 1))
    with pytest.raises(ShapeError, match=r"at least 2 patches on one axis.*received \(8, 8, 8\)"):
        decoder((8, 8, 8))(torch.randn(1, C, 8, 8, 8), skips, final)
    with pytest.raises(ShapeError, match=r"at least 2 patches on one axis.*received \(16, 16, 16\)"):
        decoder((16, 16, 16))(torch.randn(1, C, 16, 16, 16), skips, final)
    skips, final = maps((1, 2, 1))
    with pytest.raises(ShapeError, match="at least 4 patches on one axis"):
        decoder((4, 4, 4))(torch.randn(1, C, 4, 8, 4), skips, final)


def test_deep_supervision_gives_the_logits_of_levels_1_and_2_in_training() -> None:
    net = decoder((8, 8, 8), deep_supervision=2)
    skips, final = maps((2, 2, 2))
    image = torch.randn(1, C, 16, 16, 16)
    assert [tuple(out.shape[2:]) for out in net.train()(image, skips, final)] == [
        (16, 16, 16),
        (8, 8, 8),
        (4, 4, 4),
    ]
    assert net.eval()(image, skips, final).shape == (1, K, 16, 16, 16)


def test_recomputed_activations_give_the_same_gradients() -> None:
    found = []
    for recompute in (False, True):
        net = decoder((8, 8, 8)).double().train()
        net.recompute = recompute
        skips, final = maps((2, 2, 2))
        image = torch.randn(1, C, 16, 16, 16, generator=torch.Generator().manual_seed(1)).double()
        net(image, [skip.double() for skip in skips], final.double()).square().mean().backward()
        found.append({name: parameter.grad.clone() for name, parameter in net.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).abs().max() <= 1e-12, name


def test_logits_take_the_image_beside_what_was_decoded() -> None:
    net = decoder((8, 8, 8)).eval()
    net.up_blocks[-1].register_forward_hook(lambda *given: torch.zeros_like(given[2]))
    skips, final = maps((2, 2, 2))
    image = torch.randn(1, C, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = net(image, skips, final)
        assert torch.equal(net(image, skips, final + 1), logits)
        other = image.clone()
        other[..., 15] += torch.randn(1, C, 16, 16, generator=torch.Generator().manual_seed(3))
        changed = net(other, skips, final) - logits
    assert changed[..., 14:].abs().max() > 1e-3


def test_multiplications_at_the_size_of_the_paper() -> None:
    """Counted by hand, in G, for 96³, patch 8, E = 768, F = 16, one channel, 14 classes."""
    net = SparseUNETR(decoder="half_resolution", depth=1, pruning_stages=(), keep_ratio=1.0)
    grid, level2, level1 = 12**3, 24**3, 48**3
    pixels = level1 * (27 * (8 * 32 + 32 * 32) + 8 * 32)
    enter = grid * (768 * 128 + 2 * 27 * 128**2)
    skip = level2 * 768 * 64
    up2 = level2 * (128 * 64 + 2 * 27 * 64**2)
    up1 = level1 * (64 * 32 + 2 * 27 * 32**2)
    out = 96**3 * 64 * 14
    image = torch.zeros(1, 1, 96, 96, 96)
    tokens = torch.zeros(1, 768, 12, 12, 12)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.decoder(image, [tokens] * 3, tokens)
    counted = counter.get_total_flops() // 2
    assert counted == pixels + enter + skip + up2 + up1 + out
    assert counted / 1e9 == pytest.approx(16.53, abs=0.01)
