"""Sliding windows against MONAI's, and their parts against formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from sparseg.errors import ConfigError
from sparseg.windows.empty import EmptyRule
from sparseg.windows.grid import axis_starts, padding_to_roi, window_starts
from sparseg.windows.importance import importance_map
from sparseg.windows.sliding import sliding_window

ROI = (8, 6, 4)


class Blur(nn.Module):
    """A network whose result at a voxel depends on where the window lies: padding enters from its edges."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image) + image.mean(dim=(1, 2, 3, 4), keepdim=True)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parity
@pytest.mark.parametrize("importance", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [(16, 12, 8), (11, 13, 7), (9, 6, 5), (5, 13, 3), (3, 3, 3)])
def test_equals_monai(size: tuple[int, int, int], overlap: float, importance: str) -> None:
    net, image = Blur().eval(), seeded(1, 2, *size)
    with torch.no_grad():
        found = sliding_window(image, net, ROI, overlap=overlap, importance=importance, batch_size=3)  # type: ignore[arg-type]
        expected = sliding_window_inference(image[None], ROI, 3, net, overlap=overlap, mode=importance)[0]
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_an_empty_rule_that_skips_nothing_changes_nothing(batch_size: int) -> None:
    net, image = Blur().eval(), seeded(2, 2, 13, 9, 7)
    rule = EmptyRule(0.0, (10.0, 0.0, 0.0))
    with torch.no_grad():
        plain = sliding_window(image, net, ROI, batch_size=batch_size)
        found = sliding_window(image, net, ROI, batch_size=batch_size, empty=rule)
        expected = sliding_window_inference(image[None], ROI, batch_size, net, overlap=0.5, mode="gaussian")
    assert torch.equal(found, plain)
    assert (found - expected[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("roi", [(8, 8, 8), (16, 12, 5), (96, 3, 1)])
def test_importance_map_is_monais(roi: tuple[int, int, int]) -> None:
    expected = compute_importance_map(roi, mode="gaussian", sigma_scale=0.125)
    assert (importance_map(roi) - expected).abs().max() <= 1e-6
    assert torch.equal(importance_map(roi, "constant"), torch.ones(roi))


def test_importance_map_against_the_formula() -> None:
    weights = importance_map((9, 6, 4))
    for i, j, k in [(4, 2, 1), (3, 3, 2), (0, 0, 0), (8, 5, 3)]:
        exponent = sum(
            ((x - (n - 1) / 2) / (n / 8)) ** 2 / 2 for x, n in zip((i, j, k), (9, 6, 4), strict=True)
        )
        assert abs(float(weights[i, j, k]) - max(1e-3, math.exp(-exponent))) <= 1e-6
    assert weights.min() >= 1e-3 - 1e-9


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("size", [8, 9, 15, 16, 17, 40])
def test_starts_cover_the_axis_and_are_monais(size: int, overlap: float) -> None:
    starts = axis_starts(size, 8, overlap)
    step = max(1, int(8 * (1 - overlap)))
    assert starts[0] == 0
    assert starts[-1] == size - 8
    assert all(0 < b - a <= step for a, b in pairwise(starts))
    expected = [s[0].start for s in dense_patch_slices((size,), (8,), (step,))]
    assert starts == expected


def test_window_starts_are_all_combinations_in_order() -> None:
    assert window_starts((10, 8, 4), (8, 4, 4), 0.5) == [
        (0, 0, 0),
        (0, 2, 0),
        (0, 4, 0),
        (2, 0, 0),
        (2, 2, 0),
        (2, 4, 0),
    ]


def test_padding_goes_to_both_sides_the_odd_voxel_behind() -> None:
    assert padding_to_roi((3, 9, 8), (8, 8, 8)) == [(2, 3), (0, 0), (0, 0)]


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_overlap_outside_its_range_is_refused(overlap: float) -> None:
    with pytest.raises(ConfigError, match=r"^overlap: overlap must be at least 0 and below 1; received"):
        axis_starts(16, 8, overlap)


def test_outside_is_the_pad_value() -> None:
    seen: list[Tensor] = []

    def network(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows

    sliding_window(torch.zeros(1, 3, 6, 4), network, ROI, pad_value=-1.0)
    assert len(seen) == 1
    expected = torch.full((1, 1, *ROI), -1.0)
    expected[:, :, 2:5] = 0
    assert torch.equal(seen[0], expected)


def test_progress_counts_windows() -> None:
    calls: list[tuple[int, int]] = []
    sliding_window(
        torch.zeros(1, 10, 6, 4),
        lambda x: x,
        (4, 6, 4),
        overlap=0.5,
        batch_size=3,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(3, 4), (4, 4)]
