"""Pruning: split the tokens present into those that go on and those that leave.

Both with their grid positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseg.errors import ConfigError
from sparseg.shapes import Triple
from sparseg.tokens.gates import open_gates
from sparseg.tokens.score import ImageScorer, ScorePredictor, ScoreTransform, transform_scores
from sparseg.tokens.scoring import LEARNED, Scoring, fixed_scores
from sparseg.tokens.select import SoftTopK, gumbel_noise, hard_topk, straight_through_mask
from sparseg.tokens.stages import Selection, StageContext, StageScores, StageTokens


def gather_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """Take `positions` [B, m] out of `tokens` [B, n, E] -> [B, m, E]."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def prune_tokens(
    present: StageTokens, scores: Tensor, k: int, mask: Tensor | None = None, protected: Tensor | None = None
) -> tuple[StageTokens, StageTokens]:
    """Split `present` by score.

    Values never change: kept tokens are multiplied by the straight-through mask (value 1), pruned ones get
    one minus the mask (value 1) as their `gate`, so that gradients reach the scores through both branches.

    Args:
        present: The tokens of this stage.
        scores: `[B, n]`; where a mask is given, the noisy scores it was made from.
        k: Number kept.
        mask: Straight-through mask `[B, n]`, or None at evaluation.
        protected: bool `[B, n]` the mask was made with, or None.

    Returns:
        (kept, pruned), each in ascending grid order; their indices partition those of `present`.
    """
    kept, pruned = hard_topk(scores, k, protected)
    kept_tokens = gather_tokens(present.tokens, kept)
    gate = None
    if mask is not None:
        kept_tokens = kept_tokens * mask.gather(1, kept).unsqueeze(-1).to(kept_tokens.dtype)
        gate = 1.0 - mask.gather(1, pruned)
    return (
        StageTokens(kept_tokens, present.indices.gather(1, kept)),
        StageTokens(gather_tokens(present.tokens, pruned), present.indices.gather(1, pruned), gate),
    )


class Pruned(NamedTuple):
    """Result of one pruning stage.

    Attributes:
        kept: Tokens that go on.
        pruned: Tokens that leave.
        decision: The scores and what they led to.
    """

    kept: StageTokens
    pruned: StageTokens
    decision: StageScores


class TokenPruning(nn.Module):
    """One pruning stage: score, select, prune. With the default scoring it is the paper's (STP).

    Args:
        dim: Token width E.
        scoring: What scores the tokens. `predictor` and `gates` look at the tokens, `image` at the image, by
            weights; the gates decide about each token on its own in training, see `tokens/gates.py`.
        score_transform: Scale of the predictor's scores, see `transform_scores`.
        soft_topk: Relaxation used for the gradient while training (`predictor`, `image`).
        temperature: tau of the relaxation (`predictor`, `image`, `gates`).
        noise_scale: Factor on the Gumbel noise added while training; 0 selects as evaluation does
            (`predictor`, `image`, `gates`).
        in_channels: Channels of the image (`image`).
        patch_size: Patch edges in voxels (`image`).
    """

    def __init__(
        self,
        dim: int,
        *,
        scoring: Scoring = "predictor",
        score_transform: ScoreTransform = "standardize",
        soft_topk: SoftTopK = "budget_exact",
        temperature: float = 0.5,
        noise_scale: float = 0.0,
        in_channels: int = 1,
        patch_size: Triple = (8, 8, 8),
    ) -> None:
        super().__init__()
        self.scoring: Scoring = scoring
        self.predictor: nn.Module | None = None
        if scoring == "image":
            self.predictor = ImageScorer(in_channels, patch_size)
        elif scoring in LEARNED:
            self.predictor = ScorePredictor(dim)
        self.score_transform: ScoreTransform = score_transform
        self.soft_topk: SoftTopK = soft_topk
        self.temperature = temperature
        self.noise_scale = noise_scale

    def scores(self, tokens: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, n, E] -> [B, n], without noise; of scorings with weights.

        Raises:
            ConfigError: the scoring looks at more than the tokens.
        """
        if self.predictor is None or self.scoring == "image":
            raise ConfigError(
                "only a scoring that looks at tokens scores them alone",
                received=self.scoring,
                remedy="call the stage itself, with a context",
                where="scoring",
            )
        if self.scoring == "gates":
            raw: Tensor = self.predictor(tokens, weight)
            return transform_scores(raw, "none")  # log-odds: their zero has a meaning
        return transform_scores(self.predictor(tokens), self.score_transform)

    def forward(
        self,
        present: StageTokens,
        k: int,
        selection: Selection | None = None,
        context: StageContext | None = None,
    ) -> Pruned:
        """Split `present` (no class token) into k kept and n - k pruned tokens.

        Args:
            present: Tokens of this stage.
            k: Number kept.
            selection: Settings of this call.
            context: What else the stage may look at; scorings other than `predictor` and `gates` need it.
        """
        selection = selection or Selection()
        if self.training and self.scoring == "gates":
            return self._gate(present, k, selection)
        if self.scoring in ("predictor", "gates"):
            scores = self.scores(present.tokens)
        else:
            assert context is not None  # the encoder always gives it
            scores = self._scores_of_image(present, k, context)
        if self.training:
            kept, pruned = self._split_training(present, scores, k, selection)
        else:
            kept, pruned = prune_tokens(present, scores, k)
        return Pruned(kept, pruned, StageScores(scores, present.indices, kept.indices))

    def _scores_of_image(self, present: StageTokens, k: int, context: StageContext) -> Tensor:
        if self.predictor is None:
            return fixed_scores(self.scoring, present, k, context)
        raw: Tensor = self.predictor(context.image)
        return transform_scores(raw.gather(1, present.indices), self.score_transform)

    def _split_training(
        self, present: StageTokens, scores: Tensor, k: int, selection: Selection
    ) -> tuple[StageTokens, StageTokens]:
        protected = selection.protected
        if protected is not None:
            protected = protected.gather(1, present.indices)
        if self.predictor is None:
            # Nothing to learn, so no mask; chance is another one at every step.
            ranked = torch.rand_like(scores) if self.scoring == "random" else scores
            return prune_tokens(present, ranked, k, protected=protected)
        noise_scale, temperature = self._noise_and_temperature(selection)
        if noise_scale > 0:
            scores = scores + noise_scale * gumbel_noise(scores)
        mask = straight_through_mask(
            scores, k, soft_topk=self.soft_topk, temperature=temperature, protected=protected
        )
        return prune_tokens(present, scores, k, mask, protected)

    def _gate(self, present: StageTokens, k: int, selection: Selection) -> Pruned:
        """Independent decisions: both groups hold all tokens, and weights say which of them are theirs."""
        noise_scale, temperature = self._noise_and_temperature(selection)
        logits, passed = self.scores(present.tokens, present.weight), present.weight
        weight = open_gates(
            logits,
            temperature=temperature,
            noise_scale=noise_scale,
            passed=passed,
            protected=selection.protected,
        )
        leaving = (1.0 if passed is None else passed) - weight
        kept, _ = hard_topk(logits, k, None if passed is None else passed > 0.5)
        return Pruned(
            StageTokens(present.tokens, present.indices, weight=weight),
            StageTokens(present.tokens, present.indices, weight=leaving),
            StageScores(logits, present.indices, kept, weight),
        )

    def _noise_and_temperature(self, selection: Selection) -> tuple[float, float]:
        return (
            self.noise_scale if selection.noise_scale is None else selection.noise_scale,
            self.temperature if selection.temperature is None else selection.temperature,
        )


def full_grid(tokens: Tensor) -> StageTokens:
    """All L tokens of a grid, `[B, L, E]`, as one group."""
    batch, length, _ = tokens.shape
    return StageTokens(tokens, torch.arange(length, device=tokens.device).expand(batch, length))
