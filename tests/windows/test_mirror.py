"""Mirroring: means by value, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseg.errors import ConfigError
from sparseg.windows.mirror import mirrored
from sparseg.windows.sliding import sliding_window


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ramp(windows: Tensor) -> Tensor:
    """Return the voxel's value plus its index along each axis, times 1, 10, 100."""
    h, w, d = (torch.arange(n).float() for n in windows.shape[2:])
    return windows + h[:, None, None] + 10 * w[:, None] + 100 * d


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (2, 0), (0, 1, 2)])
def test_the_mean_over_all_mirror_images(axes: tuple[int, ...]) -> None:
    windows = seeded(2, 1, 4, 3, 6)
    found = mirrored(ramp, axes)(windows)
    # Along a mirrored axis an index and its mirror image average to the middle; values come back in place.
    index = [torch.arange(n).float() for n in windows.shape[2:]]
    for axis in axes:
        index[axis] = torch.full_like(index[axis], (windows.shape[2 + axis] - 1) / 2)
    expected = windows + index[0][:, None, None] + 10 * index[1][:, None] + 100 * index[2]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_logits_are_averaged_not_probabilities() -> None:
    def step(windows: Tensor) -> Tensor:
        logits = torch.zeros_like(windows)
        logits[:, :, 0] = 8.0
        return logits

    found = mirrored(step, (0,))(torch.zeros(1, 1, 2, 1, 1)).flatten()
    assert found.tolist() == [4.0, 4.0]


def test_no_axis_is_the_network_itself() -> None:
    assert mirrored(ramp, ()) is ramp


def test_number_of_runs_and_an_output_the_network_keeps() -> None:
    kept = torch.ones(1, 1, 2, 2, 2, dtype=torch.bfloat16)
    calls: list[int] = []

    def network(_: Tensor) -> Tensor:
        calls.append(1)
        return kept

    found = mirrored(network, (0, 1, 2))(torch.zeros(1, 1, 2, 2, 2))
    assert len(calls) == 8
    assert found.dtype == torch.float32
    assert bool((found == 1).all())
    assert bool((kept == 1).all())


def test_a_network_that_commutes_with_flips_is_unchanged_over_a_volume() -> None:
    image = seeded(1, 11, 9, 8)
    plain = sliding_window(image, lambda x: 3 * x, (6, 6, 4))
    found = sliding_window(image, mirrored(lambda x: 3 * x, (0, 1, 2)), (6, 6, 4))
    assert float((found - plain).abs().max()) <= 1e-5


@pytest.mark.parametrize("axes", [(3,), (-1,), (1, 1)])
def test_axes_that_do_not_exist_are_refused(axes: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"axes: mirrored axes must be different ones of 0, 1 and 2; received"
    ):
        mirrored(ramp, axes)
