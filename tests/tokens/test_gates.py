"""Independent gates (DynamicViT): decisions, masked attention and ratio loss by hand; what training hides."""

from __future__ import annotations

import math

import pytest
import torch

from sparseg.layers.attention import masked_attention
from sparseg.layers.block import Block
from sparseg.tokens.assemble import assemble_grid
from sparseg.tokens.gates import open_gates
from sparseg.tokens.prune import TokenPruning, full_grid
from sparseg.tokens.score import ScorePredictor
from sparseg.tokens.stages import Selection, StageScores
from sparseg.training.selection import ratio_loss


def test_decisions_and_their_gradient() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    passed = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    decision = open_gates(logits, temperature=0.5, noise_scale=0.0, passed=passed)
    assert decision[0].tolist() == pytest.approx([1, 0, 0])
    decision.sum().backward()
    # sigma(x/tau)(1 - sigma(x/tau))/tau where the token is still there.
    slopes = [math.exp(-x / 0.5) / (1 + math.exp(-x / 0.5)) ** 2 / 0.5 for x in (0.5, -1.0)]
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([*slopes, 0])


def test_gumbel_noise_keeps_with_the_probability_of_the_logit() -> None:
    torch.manual_seed(0)
    logits = torch.full((1, 20000), math.log(3.0))  # odds 3 : 1
    share = float(open_gates(logits, temperature=1.0, noise_scale=1.0).mean())
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 20000)


def test_protected_tokens_pass_unless_dropped_before() -> None:
    logits, passed = torch.full((1, 3), -5.0), torch.tensor([[1.0, 1.0, 0.0]])
    protected = torch.tensor([[True, False, True]])
    found = open_gates(logits, temperature=1.0, noise_scale=0.0, passed=passed, protected=protected)
    assert found[0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_masked_attention_by_hand() -> None:
    """exp(P) = 1, 2, 3 for every query; v = 1, 10, 100; the token in the middle is dropped."""
    q = torch.ones(1, 1, 3, 1, dtype=torch.float64)
    k = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log().reshape(1, 1, 3, 1)
    v = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).reshape(1, 1, 3, 1)
    keep = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    out = masked_attention(q, k, v, keep)
    # Rows 0 and 2: (1 + 300)/(1 + 3). The dropped token sees itself too: (1 + 20 + 300)/6.
    assert out.flatten().tolist() == pytest.approx([75.25, 53.5, 75.25])
    out.sum().backward()
    # d/dG (1 + 20 G + 300)/(4 + 2 G) at 0 = (20 · 4 - 301 · 2)/16, in two rows.
    assert keep.grad is not None
    assert float(keep.grad[0, 1]) == pytest.approx(2 * -32.625)


def test_hidden_tokens_change_nothing_for_the_others() -> None:
    """A block that masks them gives the others what a block without them gives."""
    torch.manual_seed(1)
    block = Block(12, 3).double().eval()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    kept = torch.tensor([0, 2, 3, 6])
    keep = torch.zeros(2, 7, dtype=torch.float64).index_fill(1, kept, 1.0)
    assert (block(x, keep=keep)[:, kept] - block(x[:, kept])).abs().max() <= 1e-12


def test_ratio_loss_by_hand() -> None:
    indices = torch.arange(4).expand(2, 4)

    def stage(k: int, *rows: list[float]) -> StageScores:
        return StageScores(torch.zeros(2, 4), indices, indices[:, :k], torch.tensor(rows).float())

    # Shares wanted 1/2 and 1/4. Kept 1/2 and 3/4: 0, 1/16; kept 1/4 and 3/4: 0, 1/4. Mean of the four: 5/64.
    stages = [stage(2, [1, 1, 0, 0], [1, 1, 1, 0]), stage(1, [1, 0, 0, 0], [1, 0, 1, 1])]
    assert float(ratio_loss(stages)) == pytest.approx(5 / 64)


def test_training_keeps_all_tokens_and_says_whose_they_are() -> None:
    torch.manual_seed(2)
    first, second = (TokenPruning(8, scoring="gates", noise_scale=1.0, temperature=1.0) for _ in range(2))
    tokens = torch.randn(2, 30, 8)
    one = first(full_grid(tokens), 15)
    two = second(one.kept, 7)
    assert torch.equal(two.kept.tokens, tokens)
    groups = [one.pruned, two.pruned, two.kept]
    weights = torch.stack([group.weight for group in groups if group.weight is not None])
    assert weights.shape == (3, 2, 30)
    assert (weights.sum(dim=0) - 1).abs().max() <= 1e-6
    assert ((weights - weights.round()).abs() <= 1e-6).all()
    assert (weights.sum(dim=2) > 0).all()
    assert (assemble_grid(groups) - tokens).abs().max() <= 1e-5
    assert [one.decision.kept.shape[1], two.decision.kept.shape[1]] == [15, 7]
    # Evaluation would choose among what the first stage let pass.
    assert one.kept.weight is not None
    assert (one.kept.weight.gather(1, two.decision.kept) > 0.5).all()


def test_evaluation_takes_the_highest_keep_probabilities() -> None:
    torch.manual_seed(3)
    stage, present = (
        TokenPruning(8, scoring="gates", noise_scale=1.0).eval(),
        full_grid(torch.randn(2, 20, 8)),
    )
    kept, pruned, _ = stage(present, 6)
    scores = stage.scores(present.tokens)
    assert scores.gather(1, kept.indices).amin(dim=1).gt(scores.gather(1, pruned.indices).amax(dim=1)).all()
    assert kept.tokens.shape == (2, 6, 8)
    assert kept.weight is None


def test_temperature_and_noise_of_a_call() -> None:
    torch.manual_seed(4)
    stage, present = TokenPruning(8, scoring="gates", noise_scale=1.0), full_grid(torch.randn(1, 50, 8))
    quiet = stage(present, 10, Selection(noise_scale=0.0)).kept.weight
    expected = (stage.scores(present.tokens) > 0).float()
    assert quiet is not None
    assert (quiet - expected).abs().max() <= 1e-6


def test_mean_of_the_predictor_leaves_dropped_tokens_out() -> None:
    torch.manual_seed(5)
    predictor, tokens = ScorePredictor(8).double(), torch.randn(1, 6, 8, dtype=torch.float64)
    weight = torch.tensor([[1.0, 1, 0, 1, 0, 0]], dtype=torch.float64)
    there = [0, 1, 3]
    assert (predictor(tokens, weight)[:, there] - predictor(tokens[:, there])).abs().max() <= 1e-12
    assert predictor(tokens, torch.zeros(1, 6)).isfinite().all()
