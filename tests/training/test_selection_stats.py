"""Numbers about the selection against a reference written with loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparseg.models.build import build_segmenter
from sparseg.tokens.stages import Selection, StageScores
from sparseg.training.selection import patch_targets, protected_patches
from sparseg.training.selection_stats import merge_stats, selection_stats

PATCH, LENGTH = (4, 4, 4), 64


def slow_stats(stages: list[StageScores], members: dict[str, list[set[int]]]) -> dict[str, float]:
    """The same with sets of grid positions per image."""
    batch = stages[0].scores.shape[0]
    result: dict[str, float] = {"tokens/0": float(LENGTH)}
    for number, stage in enumerate(stages, start=1):
        k = stage.kept.shape[1]
        trained, evaluated = [], []
        for row in range(batch):
            ranked = sorted(
                zip(stage.scores[row].tolist(), stage.indices[row].tolist(), strict=True),
                key=lambda pair: -pair[0],
            )
            trained.append(set(stage.kept[row].tolist()))
            evaluated.append({position for _, position in ranked[:k]})
        result[f"tokens/{number}"] = float(k)
        common = sum(len(a & b) for a, b in zip(trained, evaluated, strict=True))
        result[f"agreement/{number}"] = common / (k * batch)
        for kind, kept in (("kept", trained), ("kept_eval", evaluated)):
            for name, rows in members.items():
                total = sum(len(row) for row in rows)
                there = sum(len(row & marks) for row, marks in zip(rows, kept, strict=True))
                result[f"{kind}/{number}/{name}"] = there / total if total else math.nan
    return result


def positions(flags: Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in flags]


def run(target: Tensor, num_classes: int) -> tuple[list[StageScores], dict[str, float]]:
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", num_classes=num_classes, noise_scale=1.0).train()
    classes = patch_targets(target, PATCH, num_classes).classes
    selection = Selection(protected=protected_patches(classes, 4))
    image = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    output = net(image, return_selection=True, selection=selection)
    return output.selection, selection_stats(output.selection, target, PATCH, num_classes)


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key


def test_numbers_of_a_batch_of_ids() -> None:
    target = torch.zeros(2, 1, 16, 16, 16, dtype=torch.uint8)
    target[0, 0, 2:9, 3:12, 4:16] = 1
    target[1, 0, 5:7, 5:7, 3:5] = 3
    stages, found = run(target, 4)
    targets = patch_targets(target, PATCH, 4)
    members = {
        "foreground": positions(targets.foreground),
        "boundary": positions(targets.boundary),
        **{f"class {i}": positions(targets.classes[:, i - 1]) for i in (1, 2, 3)},
    }
    same(found, slow_stats(stages, members))
    assert math.isnan(found["kept/2/class 2"])
    # Noise separates training from evaluation; protection keeps what the scores alone would lose.
    assert 0.3 < found["agreement/1"] < 0.99
    assert found["kept/3/class 3"] == 1.0 > found["kept_eval/1/class 3"]
    assert [found[f"tokens/{stage}"] for stage in range(4)] == [64, 32, 16, 8]


def test_numbers_of_a_batch_of_regions() -> None:
    target = torch.zeros(2, 2, 16, 16, 16)
    target[:, 0, 2:14, 3:12, 4:16] = 1
    target[1, 1, 5:7, 5:7, 3:5] = 1
    stages, found = run(target, 2)
    targets = patch_targets(target, PATCH, 2)
    members = {
        "foreground": positions(targets.foreground),
        "boundary": positions(targets.boundary),
        **{f"class {i}": positions(targets.classes[:, i]) for i in (0, 1)},
    }
    same(found, slow_stats(stages, members))


def test_without_noise_and_protection_training_agrees_with_evaluation() -> None:
    torch.manual_seed(2)
    net = build_segmenter("test_tiny").train()
    target = torch.zeros(2, 1, 16, 16, 16)
    target[:, :, 4:10, 4:10, 4:10] = 1
    output = net(torch.randn(2, 1, 16, 16, 16), return_selection=True)
    found = selection_stats(output.selection, target, PATCH, 3)
    for stage in (1, 2, 3):
        assert found[f"agreement/{stage}"] == 1.0
        for name in ("foreground", "boundary", "class 1"):
            assert found[f"kept/{stage}/{name}"] == found[f"kept_eval/{stage}/{name}"]


def test_a_dense_model_has_its_tokens_only() -> None:
    assert selection_stats([], torch.zeros(1, 1, 16, 16, 16), PATCH, 3) == {"tokens/0": 64.0}


def test_merging_ignores_what_is_not_known() -> None:
    nan = math.nan
    merged = merge_stats([{"a": 1.0, "b": nan, "c": nan}, {"a": 2.0, "b": 0.5, "c": nan, "d": 4.0}])
    assert list(merged) == ["a", "b", "c", "d"]
    assert (merged["a"], merged["b"], merged["d"]) == (1.5, 0.5, 4.0)
    assert math.isnan(merged["c"])
    assert merge_stats([]) == {}
