"""Selection per call: it counts for that call, and the result says what each stage decided."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.errors import ConfigError, ShapeError
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.tokens.select import hard_topk
from sparseg.tokens.stages import Selection


def tiny(seed: int = 0, **options: Any) -> SparseUNETR:
    torch.manual_seed(seed)
    return build_segmenter("test_tiny", **options)


def image(seed: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


def gradients(net: SparseUNETR, selection: Selection | None) -> tuple[Tensor, list[Tensor]]:
    net.zero_grad()
    torch.manual_seed(99)
    logits = net(image(), selection=selection)
    logits.square().mean().backward()
    return logits.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("selection", "options"),
    [
        (Selection(temperature=1.7), {"temperature": 1.7}),
        (Selection(noise_scale=0.8), {"noise_scale": 0.8}),
        (Selection(keep_ratios=(0.9, 0.7, 0.25)), {"keep_ratio": (0.9, 0.7, 0.25)}),
        (
            Selection(1.3, (1.0, 0.6, 0.6), 0.4),
            {"temperature": 1.3, "keep_ratio": (1.0, 0.6, 0.6), "noise_scale": 0.4},
        ),
    ],
)
def test_a_call_equals_a_model_built_that_way(selection: Selection, options: dict[str, Any]) -> None:
    net, other = tiny().train(), tiny(**options).train()
    before = gradients(net, None)
    found, expected = gradients(net, selection), gradients(other, None)
    assert torch.equal(found[0], expected[0])
    assert len(found[1]) == len(list(net.parameters()))
    for a, b in zip(found[1], expected[1], strict=True):
        assert torch.equal(a, b)
    after = gradients(net, None)  # nothing of it stays behind
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before[1], found[1], strict=True))


def test_ratios_replace_absolute_counts_and_hold_in_evaluation() -> None:
    net = tiny(num_keep=(20, 10, 5)).eval()
    with torch.no_grad():
        plain = net(image(), return_selection=True)
        more = net(image(), return_selection=True, selection=Selection(keep_ratios=(1.0, 0.75, 0.5)))
    assert [stage.kept.shape[1] for stage in plain.selection] == [20, 10, 5]
    assert [stage.kept.shape[1] for stage in more.selection] == [64, 48, 24]


@pytest.mark.parametrize("training", [True, False])
def test_the_result_says_what_each_stage_decided(training: bool) -> None:
    net = tiny(2, noise_scale=1.0).train(training)
    torch.manual_seed(3)
    logits, stages, selection = net(image(), return_selection=True)
    torch.manual_seed(3)
    two = net(image(), return_stages=True)
    assert len(two) == 2
    assert torch.equal(two.logits, logits)
    present = torch.arange(64).expand(2, 64)
    for number, stage in enumerate(selection):
        assert torch.equal(stage.indices, present)
        both = torch.cat((stage.kept, stages[number].indices), dim=1).sort(dim=1).values
        assert torch.equal(both, present)
        best = present.gather(1, hard_topk(stage.scores, stage.kept.shape[1])[0])
        assert torch.equal(stage.kept, best) is not training
        assert stage.scores.mean(dim=1).abs().max() <= 1e-5
        assert stage.scores.requires_grad
        present = stage.kept
    assert torch.equal(stages[-1].indices, present)


def test_a_dense_model_decides_nothing() -> None:
    assert tiny(pruning_stages=())(image(), return_selection=True).selection == []


def test_protected_positions_pass_all_stages_in_training_only() -> None:
    net = tiny(4)
    worst = net.eval()(image(), return_selection=True).stages[0].indices[:, :8]
    protected = torch.zeros(2, 64, dtype=torch.bool).scatter(1, worst, value=True)
    evaluated = net(image(), return_selection=True, selection=Selection(protected=protected))
    assert torch.equal(evaluated.stages[0].indices[:, :8], worst)
    trained = net.train()(image(), return_selection=True, selection=Selection(protected=protected))
    assert [stage.indices.shape[1] for stage in trained.stages] == [32, 16, 8, 8]
    assert torch.equal(trained.stages[-1].indices, worst)
    assert trained.logits.isfinite().all()


@pytest.mark.parametrize(
    ("selection", "error", "rule"),
    [
        (Selection(keep_ratios=(0.5, 0.5)), ConfigError, r"one keep ratio per pruning stage \(3\)"),
        (Selection(keep_ratios=(0.5, 0.5, 0.0)), ConfigError, "above 0 and at most 1"),
        (
            Selection(protected=torch.zeros(2, 63, dtype=torch.bool)),
            ShapeError,
            r"bool tensor of shape \(2, 64\)",
        ),
        (Selection(protected=torch.zeros(2, 64)), ShapeError, "received torch.float32 of shape"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused(
    selection: Selection, error: type[Exception], rule: str
) -> None:
    with pytest.raises(error, match=rule) as caught:
        tiny()(image(), selection=selection)
    assert "\n" not in str(caught.value)
