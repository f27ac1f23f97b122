"""Scores by convolutions over the image: where they look, what they cost, that they learn and prune."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparseg.errors import ConfigError
from sparseg.models.build import build_segmenter
from sparseg.tokens.prune import TokenPruning, full_grid
from sparseg.tokens.score import ImageScorer, _halving_strides
from sparseg.tokens.stages import StageContext
from sparseg.training.selection import score_loss


def images(*size: int, batch: int = 2, channels: int = 1) -> Tensor:
    """Return noise `[B, C, *size]`."""
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((8, 8, 8), [(2, 2, 2)] * 3),
        ((8, 8, 4), [(2, 2, 1), (2, 2, 2), (2, 2, 2)]),
        ((16, 2, 1), [(2, 1, 1), (2, 1, 1), (2, 1, 1), (2, 2, 1)]),
    ],
)
def test_one_score_per_patch_in_grid_order(patch, strides) -> None:
    assert _halving_strides(patch) == strides
    torch.manual_seed(0)
    scorer = ImageScorer(2, patch)
    image = images(32, 16, 8, channels=2)
    grid = [edge // p for edge, p in zip((32, 16, 8), patch, strict=True)]
    base = scorer(image)
    assert base.shape == (2, grid[0] * grid[1] * grid[2])
    # A voxel changes the score of its own patch and of few around it; along an axis that is halved late, or
    # never, every convolution reaches one voxel farther.
    reach = torch.tensor([2 if edge >= 8 else 3 if edge == 4 else 5 for edge in patch])
    place = torch.tensor([grid[0] - 1, 0, grid[2] - 1])
    changed = image.clone()
    changed[(1, 0, *(int(n) * p + p // 2 for n, p in zip(place, patch, strict=True)))] += 50
    moved = (scorer(changed) - base).abs()
    assert torch.equal(moved[0], torch.zeros_like(moved[0]))
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    near = ((places - place).abs() <= reach).all(dim=1)
    assert torch.equal(moved[1][~near], torch.zeros(int((~near).sum())))
    assert moved[1][(places == place).all(dim=1)].item() > 0


def test_a_patch_is_scored_by_what_is_near_it() -> None:
    torch.manual_seed(0)
    scorer = ImageScorer(1, (8, 8, 8))
    image = images(64, 8, 8, batch=1)
    other = image.clone()
    other[:, :, 40:] = 0  # 5 patches and more away from the first
    base, far = scorer(image)[0], scorer(other)[0]
    torch.testing.assert_close(base[:2], far[:2])
    assert not torch.allclose(base[5:], far[5:])


def test_moving_the_image_by_a_patch_moves_the_scores() -> None:
    torch.manual_seed(0)
    scorer = ImageScorer(1, (4, 4, 4))
    image = images(48, 4, 4, batch=1)
    base, moved = scorer(image)[0], scorer(image.roll(4, dims=2))[0]
    torch.testing.assert_close(moved[5:9], base[4:8])


def test_a_stage_ignores_the_tokens_and_learns_by_the_score_loss() -> None:
    """Bright patches are wanted; after a few steps they are the ones that stay."""
    torch.manual_seed(0)
    stage = TokenPruning(12, scoring="image", in_channels=1, patch_size=(4, 4, 4)).train()
    optimizer = torch.optim.Adam(stage.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)

    def draw() -> tuple[Tensor, Tensor]:
        wanted = torch.rand(4, 64, generator=generator) < 0.15
        volume = torch.randn(4, 1, 16, 16, 16, generator=generator)
        marks = torch.zeros(4, 4, 4, 4, 4, 4, 4)
        marks[:, :, 1, :, 2, :, 1] = 6.0 * wanted.reshape(4, 4, 4, 4)
        return volume + marks.reshape(4, 1, 16, 16, 16), wanted

    for _ in range(60):
        image, wanted = draw()
        present = full_grid(torch.randn(4, 64, 12, generator=generator))
        decision = stage(present, 16, context=StageContext(image, (4, 4, 4), 0)).decision
        loss = score_loss([decision], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stage.eval()
    image, wanted = draw()
    context = StageContext(image, (4, 4, 4), 0)
    kept = stage(full_grid(torch.zeros(4, 64, 12)), 16, context=context).kept.indices
    found = torch.zeros(4, 64, dtype=torch.bool).scatter(1, kept, value=True)
    assert (found & wanted).sum() / wanted.sum() > 0.95
    again = stage(full_grid(torch.ones(4, 64, 12)), 16, context=context).kept.indices
    assert torch.equal(kept, again)


def test_the_gradient_of_the_segmentation_reaches_it() -> None:
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", scoring="image").train()
    net(images(*net.config.roi_size)).square().mean().backward()
    for stage in net.encoder.prunings:
        assert isinstance(stage.predictor, ImageScorer)
        gradient = stage.predictor.out.weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_it_may_stand_before_the_first_block() -> None:
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", scoring="image", pruning_stages=(0,), keep_ratio=0.25).eval()
    image = images(*net.config.roi_size)
    seen: list[int] = []
    for block in net.blocks()[: net.config.depth]:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    with torch.inference_mode():
        logits, stages = net(image, return_stages=True)
    assert net.token_counts() == [64, 16]
    assert max(seen) == 17  # 16 tokens and the class token: no block sees all of them
    assert torch.isfinite(logits).all()
    raw = net.encoder.prunings[0].predictor(image)
    expected = raw.topk(16, dim=1).indices.sort(dim=1).values
    assert torch.equal(stages[-1].indices, expected)


def test_it_cannot_score_tokens_alone() -> None:
    stage = TokenPruning(12, scoring="image")
    assert isinstance(stage.predictor, nn.Module)
    with pytest.raises(ConfigError, match="received image"):
        stage.scores(torch.zeros(1, 4, 12))
