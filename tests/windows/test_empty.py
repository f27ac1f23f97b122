"""Empty windows: which are skipped, what their voxels get, and that nothing near content changes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparseg.errors import ShapeError
from sparseg.windows.empty import EmptyRule, has_content, windows_with_content
from sparseg.windows.grid import axis_starts, window_starts
from sparseg.windows.importance import importance_map
from sparseg.windows.plan import plan_windows
from sparseg.windows.sliding import sliding_window

ROI = (6, 4, 4)
FILL = (10.0, 0.0, -3.0)
CLASSES = torch.tensor([1.0, -2.0, 0.5]).reshape(1, 3, 1, 1, 1)


def network(windows: Tensor) -> Tensor:
    """Return logits that depend on the voxel, its place and the whole window, and are never the fill."""
    place = torch.arange(windows[0, 0].numel()).reshape(windows.shape[2:]) / 50
    return CLASSES * (windows[:, :1] + windows.mean(dim=(1, 2, 3, 4), keepdim=True) + place) + 0.25


def blobs(seed: int, size: tuple[int, int, int] = (20, 17, 15), background: float = -1.0) -> Tensor:
    """Return background with a few small boxes of content; one of them may touch a border."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((1, *size), background)
    for _ in range(2):
        at = [int(torch.randint(0, edge - 1, (), generator=generator)) for edge in size]
        box = tuple(slice(first, first + 2) for first in at)
        image[(0, *box)] = torch.rand(image[(0, *box)].shape, generator=generator)
    return image


def within(content: Tensor, reach: int) -> Tensor:
    """Grow a mask by `reach` voxels along all axes."""
    return F.max_pool3d(content[None].float(), 2 * reach + 1, 1, reach)[0] > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("margin", [0, 2])
def test_what_is_near_content_stays_bit_for_bit(seed: int, overlap: float, margin: int) -> None:
    image = blobs(seed)
    rule = EmptyRule(-1.0, FILL, margin_vox=margin)
    skipped = plan_windows(image, ROI, overlap, empty=rule).num_skipped
    assert skipped > 0
    everywhere = sliding_window(image, network, ROI, overlap=overlap)
    found = sliding_window(image, network, ROI, overlap=overlap, empty=rule)
    near = within(has_content(image, rule), margin)
    assert torch.equal(found[:, near], everywhere[:, near])
    assert not torch.equal(found, everywhere)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_seams_are_the_mean_of_the_windows_that_were_run(overlap: float) -> None:
    """Against a loop in float64 that looks at every window for itself."""
    image, weights = blobs(7), importance_map(ROI).double()
    rule = EmptyRule(-1.0, FILL, margin_vox=1)
    sums, total = torch.zeros(3, *image.shape[1:]).double(), torch.zeros(image.shape[1:]).double()
    for start in window_starts(image.shape[1:], ROI, overlap):
        wide = tuple(slice(max(0, a - 1), a + n + 1) for a, n in zip(start, ROI, strict=True))
        if bool((image[(0, *wide)] == -1).all()):
            continue
        box = tuple(slice(a, a + n) for a, n in zip(start, ROI, strict=True))
        sums[(slice(None), *box)] += network(image[(slice(None), *box)][None])[0].double() * weights
        total[box] += weights
    expected = torch.where(total > 0, sums / total, torch.tensor(FILL).double().reshape(3, 1, 1, 1))
    found = sliding_window(image, network, ROI, overlap=overlap, empty=rule)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-6)
    # Decided voxels beside undecided ones, or there was no seam.
    decided = total > 0
    assert bool((decided & within(~decided, 1)).any())
    assert torch.equal(found[:, ~decided], torch.tensor(FILL)[:, None].expand(3, int((~decided).sum())))


def test_windows_with_content_against_a_loop() -> None:
    content = torch.rand(19, 11, 10, generator=torch.Generator().manual_seed(3)) > 0.995
    axes = tuple(axis_starts(n, edge, 0.5) for n, edge in zip(content.shape, ROI, strict=True))
    found = windows_with_content(content, axes, ROI, 1)  # type: ignore[arg-type]
    for at in product(*(range(len(starts)) for starts in axes)):
        first = [axes[axis][at[axis]] for axis in range(3)]
        box = tuple(slice(max(0, a - 1), a + n + 1) for a, n in zip(first, ROI, strict=True))
        assert bool(found[at]) == bool(content[box].any())
    assert 0 < int(found.sum()) < found.numel()


def test_content_is_what_leaves_the_tolerance_in_any_channel() -> None:
    image = torch.zeros(2, 2, 2, 2)
    image[0, 0, 0, 0], image[1, 0, 0, 1] = 0.1, -0.1
    image[0, 0, 1, 0], image[1, 0, 1, 1] = 0.2, -0.2
    image[1, 1, 1, 1] = float("nan")
    found = has_content(image, EmptyRule(0.0, FILL, tolerance=0.15))
    assert found.nonzero().tolist() == [[0, 1, 0], [0, 1, 1], [1, 1, 1]]


def test_a_single_voxel_outside_a_window_but_in_its_margin_counts() -> None:
    image = torch.full((1, 18, 4, 4), -1.0)
    image[0, 7, 0, 0] = 0.0  # windows of 6 at 0, 6 and 12
    for margin, skipped in [(0, 2), (1, 2), (2, 1), (4, 1), (5, 0)]:
        rule = EmptyRule(-1.0, FILL, margin_vox=margin)
        assert plan_windows(image, ROI, 0.0, empty=rule).num_skipped == skipped


def test_without_any_content_the_network_is_not_called() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError

    seen: list[tuple[int, int]] = []
    found = sliding_window(
        torch.full((1, 3, 9, 5), -1.0),
        never,
        ROI,
        pad_value=-1.0,
        empty=EmptyRule(-1.0, FILL),
        on_progress=lambda *now: seen.append(now),
    )
    assert torch.equal(found, torch.tensor(FILL).reshape(3, 1, 1, 1).expand(3, 3, 9, 5))
    assert seen == []


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_batches_and_progress_count_only_what_is_run(batch_size: int) -> None:
    image, rule = blobs(1), EmptyRule(-1.0, FILL)
    plan = plan_windows(image, ROI, 0.5, empty=rule)
    sizes: list[int] = []
    seen: list[tuple[int, int]] = []

    def counted(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        return network(windows)

    found = sliding_window(
        image, counted, ROI, batch_size=batch_size, empty=rule, on_progress=lambda *now: seen.append(now)
    )
    assert sum(sizes) == len(plan.starts)
    assert max(sizes) <= batch_size
    assert seen[-1] == (len(plan.starts), len(plan.starts))
    assert len(plan.starts) + plan.num_skipped == len(window_starts(image.shape[1:], ROI, 0.5))
    one = sliding_window(image, network, ROI, empty=rule)
    torch.testing.assert_close(found, one, atol=1e-6, rtol=1e-6)


def test_logits_of_another_number_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"the network's 3 channels; received 2; give as many"):
        sliding_window(blobs(1), network, ROI, empty=EmptyRule(-1.0, FILL[:2]))
