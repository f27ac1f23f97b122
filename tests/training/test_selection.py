"""Schedules of the selection, labels pooled over patches, protection and the score loss, against loops."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.config import parse_config
from sparseg.errors import ConfigError, ShapeError
from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset
from sparseg.tokens.scoring import Scoring
from sparseg.tokens.stages import Selection, StageScores
from sparseg.training.selection import (
    patch_targets,
    protected_patches,
    score_loss,
    selection_at,
    step_draw,
    wanted_patches,
)
from sparseg.training.selection_config import SelectionConfig

MODEL = SegmenterConfig(**preset("test_tiny"))


def model(**changes: Any) -> SegmenterConfig:
    return SegmenterConfig(**{**preset("test_tiny"), **changes})


def random_ids(seed: int, shape: tuple[int, int, int], num_classes: int = 4, batch: int = 2) -> Tensor:
    """Blocks of 2 voxels and a few single ones, so that whole patches of one label occur."""
    generator = torch.Generator().manual_seed(seed)
    small = [edge // 2 for edge in shape]
    ids = torch.randint(0, num_classes, (batch, 1, *small), generator=generator)
    for axis in (2, 3, 4):
        ids = ids.repeat_interleave(2, dim=axis)
    single = torch.rand(ids.shape, generator=generator) < 0.03
    return torch.where(single, torch.randint(0, num_classes, ids.shape, generator=generator), ids)


def slow_patches(volume: Tensor, patch: tuple[int, int, int]) -> list[list[float]]:
    """Voxels [H, W, D] of each patch, row-major over the grid."""
    grid = [edge // p for edge, p in zip(volume.shape, patch, strict=True)]
    rows = []
    for a, b, c in itertools.product(*(range(n) for n in grid)):
        voxels = []
        for i, j, k in itertools.product(*(range(p) for p in patch)):
            voxels.append(float(volume[a * patch[0] + i, b * patch[1] + j, c * patch[2] + k]))
        rows.append(voxels)
    return rows


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize(("shape", "patch"), [((8, 4, 6), (2, 2, 2)), ((8, 8, 4), (4, 2, 1))])
def test_ids_are_pooled_over_patches(
    dtype: torch.dtype, shape: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    target = random_ids(0, shape)
    found = patch_targets(target.to(dtype), patch, 4)
    for row in range(2):
        for number, voxels in enumerate(slow_patches(target[row, 0], patch)):
            assert bool(found.boundary[row, number]) == (len(set(voxels)) > 1)
            assert bool(found.foreground[row, number]) == any(voxels)
            assert found.classes[row, :, number].tolist() == [float(i) in voxels for i in (1, 2, 3)]
    assert found.boundary.any()
    assert not found.boundary.all()


@pytest.mark.parametrize("num_regions", [1, 3])
def test_region_masks_are_pooled_over_patches(num_regions: int) -> None:
    ids = random_ids(1, (8, 4, 6))
    target = torch.cat([ids > number for number in range(num_regions)], dim=1).float()
    found = patch_targets(target, (2, 2, 2), num_regions)
    for row in range(2):
        patches = [slow_patches(target[row, region], (2, 2, 2)) for region in range(num_regions)]
        for number in range(found.boundary.shape[1]):
            inside = [region[number] for region in patches]
            assert found.classes[row, :, number].tolist() == [any(voxels) for voxels in inside]
            assert bool(found.foreground[row, number]) == any(any(voxels) for voxels in inside)
            assert bool(found.boundary[row, number]) == any(len(set(voxels)) > 1 for voxels in inside)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8, 8), (2, 8, 8, 8)])
def test_labels_of_another_kind_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\[B, 1, H, W, D\] ids or \[B, 3, H, W, D\] region masks"):
        patch_targets(torch.zeros(shape), (4, 4, 4), 3)


def test_classes_of_few_patches_are_protected_whole() -> None:
    classes = torch.zeros(2, 3, 6, dtype=torch.bool)
    classes[0, 0, [1, 4]] = True
    classes[0, 1, [0, 1, 2]] = True
    classes[1, 2, 5] = True
    assert protected_patches(classes, 2).int().tolist() == [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    assert protected_patches(classes, 3).int().tolist() == [[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    assert not protected_patches(classes, 0).any()


def test_without_settings_nothing_is_changed() -> None:
    target = random_ids(2, (16, 16, 16), 3)
    for progress in (0.0, 0.5, 1.0):
        assert selection_at(SelectionConfig(), MODEL, progress, target) == Selection()


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("linear", {-1.0: 2.0, 0.0: 2.0, 0.25: 1.6, 0.5: 1.2, 1.0: 0.4, 2.0: 0.4}),
        ("cosine", {0.0: 2.0, 1 / 3: 1.6, 0.5: 1.2, 2 / 3: 0.8, 1.0: 0.4}),
    ],
)
def test_temperature_goes_from_start_to_end(schedule: str, values: dict[float, float]) -> None:
    config = parse_config(
        SelectionConfig,
        {"temperature_start": 2.0, "temperature_end": 0.4, "temperature_schedule": schedule},
    )
    for progress, expected in values.items():
        assert selection_at(config, MODEL, progress).temperature == pytest.approx(expected, abs=1e-12)


def test_a_missing_end_of_the_schedule_is_the_models_temperature() -> None:
    rising = SelectionConfig(temperature_start=2.0)
    assert selection_at(rising, model(temperature=0.7), 1.0).temperature == pytest.approx(0.7)
    falling = SelectionConfig(temperature_end=0.1)
    assert selection_at(falling, model(temperature=0.7), 0.0).temperature == pytest.approx(0.7)


def test_sparsity_grows_in_few_levels() -> None:
    config = SelectionConfig(warmup_share=0.5, warmup_levels=5)
    sparse = model(keep_ratio=(0.5, 0.25, 0.1))
    seen = [selection_at(config, sparse, step / 1000).keep_ratios for step in range(1000)]
    levels = list(dict.fromkeys(seen))
    assert levels == [
        (1.0, 1.0, 1.0), (0.9, 0.85, 0.82), (0.8, 0.7, 0.64), (0.7, 0.55, 0.46), (0.6, 0.4, 0.28), None,
    ]  # fmt: skip
    assert [seen.index(level) for level in levels] == [0, 100, 200, 300, 400, 500]
    assert selection_at(config, model(pruning_stages=()), 0.0).keep_ratios is None


def test_warm_up_never_keeps_less_than_the_model() -> None:
    config = SelectionConfig(warmup_share=1.0, warmup_keep=0.4, warmup_levels=2)
    ratios = selection_at(config, model(keep_ratio=(0.5, 0.123456, 0.9)), 0.7).keep_ratios
    assert ratios == (0.5, 0.2617, 0.9)
    counted = selection_at(config, model(num_keep=(32, 8, 2)), 0.0).keep_ratios
    assert counted == (0.5, 0.4, 0.4)


def test_elastic_steps_take_each_ratio_equally_often_and_the_same_in_every_process() -> None:
    config, sparse = SelectionConfig(elastic_keep=(0.1, 0.5, 1.0)), model(keep_ratio=(0.5, 0.25, 0.1))
    draws = [step_draw(3, step) for step in range(3000)]
    seen = Counter(selection_at(config, sparse, 0.5, draw=draw).keep_ratios for draw in draws)
    assert set(seen) == {(0.1,) * 3, (0.5,) * 3, (1.0,) * 3}
    assert min(seen.values()) > 900
    assert draws[:5] == [step_draw(3, step) for step in range(5)] != [step_draw(4, step) for step in range(5)]
    assert selection_at(config, model(pruning_stages=()), 0.5, draw=0.9).keep_ratios is None


def test_elastic_steps_of_the_warm_up_keep_no_less_than_it() -> None:
    config = SelectionConfig(elastic_keep=(0.1, 0.5), warmup_share=0.5, warmup_levels=2)
    moments = itertools.product((0.0, 0.3, 0.6), (0.0, 0.9))
    seen = [selection_at(config, model(), at, draw=draw).keep_ratios for at, draw in moments]
    assert [ratios[0] for ratios in seen if ratios] == [1.0, 1.0, 0.55, 0.75, 0.1, 0.5]


def test_selection_at_protects_small_structures() -> None:
    target = torch.zeros(2, 1, 16, 16, 16, dtype=torch.int64)
    target[0, 0, :2, :2, :2] = 1  # patch 0
    target[0, 0, 8:, :, :] = 2  # half of the patches
    target[1, 0, 3:5, 0, 15] = 1  # patches 3 and 19
    config = SelectionConfig(protect_min_patches=2)
    protected = selection_at(config, MODEL, 0.3, target).protected
    assert protected is not None
    assert protected.nonzero().tolist() == [[0, 0], [1, 3], [1, 19]]
    assert selection_at(config, MODEL, 0.3).protected is None
    assert selection_at(config, model(pruning_stages=()), 0.3, target).protected is None


def slow_loss(scores: list[float], wanted: list[bool], temperature: float) -> float:
    """Cross-entropy of one row, one token after the other."""
    number = sum(wanted)
    if number in (0, len(wanted)):
        return 0.0
    ordered = sorted(scores, reverse=True)
    threshold = (ordered[number - 1] + ordered[number]) / 2
    ahead, behind = [], []
    for score, want in zip(scores, wanted, strict=True):
        share = 1 / (1 + math.exp(-(score - threshold) / temperature))
        (ahead if want else behind).append(-math.log(share if want else 1 - share))
    return 0.5 * (sum(ahead) / len(ahead) + sum(behind) / len(behind))


def stage(scores: Tensor, indices: Tensor, k: int = 2) -> StageScores:
    return StageScores(scores, indices, indices[:, :k])


def test_score_loss_is_the_mean_of_all_rows_and_stages() -> None:
    generator = torch.Generator().manual_seed(3)
    wanted = torch.rand(4, 12, generator=generator) < 0.3
    wanted[1], wanted[2] = False, True  # nothing to rank
    stages, expected = [], []
    for n in (12, 7, 3):
        indices = torch.rand(4, 12, generator=generator).argsort(dim=1)[:, :n].sort(dim=1).values
        scores = torch.randn(4, n, generator=generator).double()
        stages.append(stage(scores, indices))
        rows = [
            slow_loss(scores[b].tolist(), [bool(wanted[b, i]) for i in indices[b]], 0.7) for b in range(4)
        ]
        expected.append(sum(rows) / 4)
    assert float(score_loss(stages, wanted, 0.7)) == pytest.approx(sum(expected) / 3, abs=1e-12)
    assert float(score_loss([], wanted)) == 0.0


def test_score_loss_ranks_whatever_the_zero_of_the_scores() -> None:
    wanted = torch.tensor([[True, False, True, False, False, False]])
    indices = torch.arange(6)[None]
    scores = torch.tensor([[0.3, 1.2, -0.4, 0.0, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    loss = score_loss([stage(scores, indices)], wanted)
    loss.backward()
    moved = score_loss([stage(scores.detach() + 5, indices)], wanted)
    assert float(moved) == pytest.approx(float(loss.detach()), abs=1e-12)
    gradient = scores.grad
    assert gradient is not None
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-12)
    # The worst wanted token is pushed up most, the best unwanted one down most.
    assert int(gradient.argmin()) == 2
    assert int(gradient.argmax()) == 4
    right = torch.tensor([[9.0, 1.0, 8.0, 0.0, 1.0, -1.0]])
    assert float(score_loss([stage(right, indices)], wanted)) < 1e-2 < float(loss.detach())


def test_nothing_to_rank_still_reaches_the_scores() -> None:
    scores = torch.zeros(2, 4, requires_grad=True)
    score_loss([stage(scores, torch.arange(4).expand(2, 4))], torch.ones(2, 4, dtype=torch.bool)).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0] * 4] * 2


def test_descending_the_score_loss_brings_the_wanted_tokens_to_the_top() -> None:
    """With the default transform, which takes away mean and spread."""
    torch.manual_seed(4)
    wanted = torch.rand(3, 60) < torch.tensor([[0.05], [0.3], [0.8]])
    raw = torch.randn(3, 60, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(120):
        optimizer.zero_grad()
        scores = (raw - raw.mean(dim=1, keepdim=True)) / raw.std(dim=1, keepdim=True, correction=0)
        score_loss([stage(scores, torch.arange(60).expand(3, 60))], wanted).backward()
        optimizer.step()
    for row in range(3):
        best = raw[row].detach().argsort(descending=True)[: int(wanted[row].sum())]
        assert wanted[row, best].all()


def test_score_target_chooses_the_patches() -> None:
    targets = patch_targets(random_ids(5, (8, 8, 8), 2), (4, 4, 4), 2)
    assert wanted_patches(targets, None) is targets.boundary
    assert wanted_patches(targets, "boundary") is targets.boundary
    assert wanted_patches(targets, "foreground") is targets.foreground


def test_scores_of_the_image_are_taught_unless_told_otherwise() -> None:
    def chosen(scoring: Scoring, **settings: Any) -> tuple[float | None, str | None]:
        found = SelectionConfig(temperature_end=0.1, **settings).for_scoring(scoring)
        assert found.temperature_end == 0.1
        return found.score_weight, found.score_target

    assert chosen("image") == (1.0, "foreground")
    assert chosen("image", score_weight=0.0, score_target="boundary") == (0.0, "boundary")
    assert chosen("predictor") == (0.0, "boundary")
    assert chosen("random") == (0.0, "boundary")
    assert chosen("predictor", score_weight=0.3, score_target="foreground") == (0.3, "foreground")


@pytest.mark.parametrize(
    "values",
    [
        {"temperature_start": 0.0},
        {"warmup_share": 1.5},
        {"warmup_keep": 0.0},
        {"warmup_levels": 0},
        {"elastic_keep": (0.5, 0.0)},
        {"score_weight": -1.0},
        {"score_target": "edges"},
        {"protect_min_patches": -1},
        {"noise": 1.0},
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^train: {next(iter(values))}(\.1)?: "):
        parse_config(SelectionConfig, values, where="train")
