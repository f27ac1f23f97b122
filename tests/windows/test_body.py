"""The box of the body, and windows laid over it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseg.windows.body import BodyRule, body_box
from sparseg.windows.empty import EmptyRule
from sparseg.windows.plan import plan_windows
from sparseg.windows.sliding import sliding_window

SPACING = (5.0, 5.0, 10.0)
RULE = BodyRule(threshold=0.0, radius_mm=10.0, margin_mm=0.0)


def air(*size: int) -> Tensor:
    """Return an image `[1, *size]` of air."""
    return torch.full((1, *size), -1.0)


def test_the_table_goes_and_every_thick_part_stays() -> None:
    image = air(32, 28, 12)
    image[0, 6:20, 8:20, :] = 0.5  # the trunk, cut off by both ends of the third axis
    image[0, 24:30, 10:16, 2:9] = 0.5  # an arm beside it
    image[0, :, 24, :] = 0.5  # a sheet of 5 mm
    image[0, 2, 3, 5] = 0.9  # a speck
    assert body_box(image, RULE, SPACING) == ((6, 30), (8, 20), (0, 12))


def test_thin_parts_within_the_margin_belong_to_the_body_and_air_does_not() -> None:
    image = air(32, 28, 12)
    image[0, 6:20, 8:20, 2:9] = 0.5
    image[0, 20:30, 12, 5] = 0.5  # a finger of 50 mm
    image[0, 10:15, 26, :] = 0.5  # a sheet 30 mm away
    for margin, high in ((0.0, 20), (15.0, 23), (25.0, 25)):
        rule = BodyRule(threshold=0.0, radius_mm=10.0, margin_mm=margin)
        assert body_box(image, rule, SPACING) == ((6, high), (8, 20), (2, 9))


def test_fine_voxels_are_looked_at_in_cells_that_hold_the_body() -> None:
    image = air(31, 32, 30)
    image[0, 9:27, 5:30, 7:25] = 0.5
    (h0, h1), (w0, w1), (d0, d1) = body_box(image, RULE, (1.5, 1.5, 2.0))
    # Cells of 3, 3 and 2 voxels: at most one cell too much, and nothing missing.
    assert (h0, h1) == (9, 27)
    assert (3 <= w0 <= 5, 30 <= w1 <= 32) == (True, True)
    assert (6 <= d0 <= 7, 25 <= d1 <= 26) == (True, True)


@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_without_a_body_or_full_of_it_the_box_is_the_image(value: float) -> None:
    image = torch.full((2, 9, 8, 7), value)
    assert body_box(image, RULE, SPACING) == ((0, 9), (0, 8), (0, 7))


def test_any_channel_can_show_the_body() -> None:
    image = air(16, 16, 16).repeat(2, 1, 1, 1)
    image[1, 4:12, 3:12, 5:13] = 0.5
    assert body_box(image, RULE, (5.0, 5.0, 5.0)) == ((4, 12), (3, 12), (5, 13))


def test_windows_cover_the_box_and_the_rest_gets_the_fill() -> None:
    image = torch.rand(1, 20, 17, 9, generator=torch.Generator().manual_seed(0))
    box = ((5, 16), (2, 6), (1, 8))
    fill = (7.0, -2.0)
    plan = plan_windows(image, (6, 6, 4), 0.5, empty=EmptyRule(-1.0, fill), box=box)
    assert plan.starts[0] == (5, 1, 1)  # narrower than a window along the second axis: centred
    assert sorted({start[0] for start in plan.starts}) == [5, 8, 10]
    assert sorted({start[2] for start in plan.starts}) == [1, 3, 4]
    assert {start[1] for start in plan.starts} == {1}
    assert plan.num_skipped == 6 * 5 * 4 - 9
    found = sliding_window(
        image, lambda x: torch.cat((x, 2 * x), 1), (6, 6, 4), empty=EmptyRule(-1.0, fill), plan=plan
    )
    covered = torch.zeros(20, 17, 9, dtype=torch.bool)
    covered[5:16, 1:7, 1:8] = True
    torch.testing.assert_close(found[0][covered], image[0][covered])
    torch.testing.assert_close(found[1][covered], 2 * image[0][covered])
    assert torch.equal(found[:, ~covered], torch.tensor(fill)[:, None].expand(2, int((~covered).sum())))


def test_a_box_that_needs_as_many_windows_still_fills_what_they_leave() -> None:
    image = torch.rand(1, 12, 6, 4, generator=torch.Generator().manual_seed(1))
    rule = EmptyRule(-1.0, (3.0,))
    plan = plan_windows(image, (6, 6, 4), 0.0, empty=rule, box=((1, 12), (0, 6), (0, 4)))
    assert (len(plan.starts), plan.num_skipped) == (2, 0)
    found = sliding_window(image, lambda x: x, (6, 6, 4), empty=rule, plan=plan)
    assert torch.equal(found[0, 0], torch.full((6, 4), 3.0))
    torch.testing.assert_close(found[0, 1:], image[0, 1:])


def test_a_small_image_is_padded_and_its_box_moved_along() -> None:
    image = torch.rand(1, 3, 10, 4, generator=torch.Generator().manual_seed(2))
    rule = EmptyRule(-1.0, (3.0,))
    plan = plan_windows(image, (6, 6, 4), 0.5, empty=rule, box=((1, 3), (4, 10), (0, 4)))
    assert plan.starts == [(0, 4, 0)]
    assert plan.num_skipped == 2
    found = sliding_window(image, lambda x: x, (6, 6, 4), empty=rule, plan=plan)
    torch.testing.assert_close(found[0, :, 4:], image[0, :, 4:])
