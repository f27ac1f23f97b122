"""Coarse tokens by hand: what they are made of, whom they tell, and that the network uses them."""

from __future__ import annotations

import pytest
import torch

from sparseg.errors import ConfigError, ShapeError
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.tokens.embed import PatchEmbed
from sparseg.tokens.overview import Overview, cell_of, num_coarse
from sparseg.tokens.stages import StageTokens

GRID = (4, 2, 4)


def test_cells_of_a_small_grid_on_paper():
    # Patch (3, 1, 2) has index 3·8 + 1·4 + 2 = 30; its cube is (1, 0, 1) of 2 x 1 x 2, number 3.
    assert cell_of(torch.tensor([[0, 1, 2, 30]]), GRID, 2).tolist() == [[0, 0, 1, 3]]
    every = cell_of(torch.arange(32)[None], GRID, 2)[0]
    assert torch.bincount(every).tolist() == [8, 8, 8, 8]
    assert (num_coarse(GRID, 2), num_coarse((4, 4, 8), 4), num_coarse(GRID, 0)) == (4, 2, 0)


def test_a_coarse_token_is_the_embedding_of_the_averaged_image_at_the_mean_position():
    torch.manual_seed(0)
    embed, overview = PatchEmbed(1, 8, (2, 2, 2)), Overview(8, 2, norm_eps=1e-6)
    with torch.no_grad():
        overview.mark.fill_(0.5)
    image, position = torch.randn(1, 1, 8, 4, 8), torch.randn(1, *GRID, 8)
    found = overview.embed(image, embed, position)
    # Coarse token 3 is the cube of rows 2-3, columns 0-1, depths 2-3 of the patches: voxels 4-7, 0-3, 4-7.
    cube = image[0, 0, 4:8, 0:4, 4:8]
    averaged = cube.reshape(2, 2, 2, 2, 2, 2).mean(dim=(1, 3, 5))
    expected = (embed.proj.weight[:, 0] * averaged).sum(dim=(1, 2, 3)) + embed.proj.bias
    expected = expected + position[0, 2:4, 0:2, 2:4].mean(dim=(0, 1, 2)) + 0.5
    assert (found[0, 3] - expected).abs().max() < 1e-6


def test_each_pruned_patch_is_told_by_the_coarse_token_of_its_cube():
    overview = Overview(4, 2, norm_eps=1e-6)
    with torch.no_grad():
        overview.linear.weight.copy_(torch.eye(4))
        overview.linear.bias.zero_()
    coarse = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))
    gate = torch.ones(1, 2)
    group = StageTokens(torch.full((1, 2, 4), 10.0), torch.tensor([[2, 30]]), gate)
    told = overview.tell(group, coarse, GRID)
    normed = overview.norm(coarse)[0]
    assert (told.tokens[0] - 10.0 - normed[[1, 3]]).abs().max() < 1e-5
    assert told.gate is gate
    assert torch.equal(told.indices, group.indices)


def tiny(**options: object) -> SparseUNETR:
    torch.manual_seed(0)
    sizes = {"roi_size": (16, 16, 16), "feature_size": 2, "pruning_stages": (0,), "scoring": "image"}
    return build_segmenter("test_tiny", **{**sizes, "overview": 2, "keep_ratio": 0.25, **options})


def test_what_a_pruned_patch_shows_reaches_the_kept_ones_through_the_overview():
    for overview, reached in ((2, True), (0, False)):
        net = tiny(overview=overview).double().eval()
        image = torch.randn(1, 1, 16, 16, 16, dtype=torch.float64)
        with torch.no_grad():
            before = net.encoder(image)
            # A small change at a pruned patch that leaves the choice of patches as it is.
            place = int(before.stages[0].indices[0, -1])
            corner = [4 * int(i) for i in torch.unravel_index(torch.tensor(place), (4, 4, 4))]
            image[(0, 0, *(slice(first, first + 4) for first in corner))] += 1e-4
            after = net.encoder(image)
        assert torch.equal(before.stages[1].indices, after.stages[1].indices)
        change = (before.stages[1].tokens - after.stages[1].tokens).abs().max()
        assert bool(change > 1e-9) is reached


def test_with_and_without_an_overview_weights_have_the_same_names_but_its_own():
    with_one, without = set(tiny().state_dict()), set(tiny(overview=0).state_dict())
    assert without < with_one
    names = {"mark", "norm.weight", "norm.bias", "linear.weight", "linear.bias"}
    assert with_one - without == {f"encoder.overview.{name}" for name in names}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"pruning_stages": (), "keep_ratio": 1.0}, "needs pruning_stages"),
        ({"completion": "mask_token"}, "completion not"),
        ({"roi_size": (24, 16, 16), "overview": 4}, "multiple of 4"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, part):
    with pytest.raises((ConfigError, ShapeError)) as error:
        tiny(**options)
    assert part in str(error.value)


def test_a_window_that_coarse_tokens_do_not_fill_is_refused():
    with pytest.raises(ShapeError) as error:
        tiny()(torch.zeros(1, 1, 20, 16, 16))
    assert "(5, 4, 4)" in str(error.value)
