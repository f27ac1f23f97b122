"""Settings of token selection while training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from sparseg.config import Config
from sparseg.tokens.scoring import Scoring

ScoreTarget = Literal["boundary", "foreground"]


class SelectionConfig(Config):
    """How tokens are chosen while training; without any of it training selects as the model is built to.

    The model's own settings decide between the paper's schedule (`score_transform: log_sigmoid`,
    `soft_topk: gumbel_softmax`, `noise_scale: 1`) and the budget-exact one. Supervising the score by boundary
    patches follows HRViT (MICCAI 2025), keeping some tokens of each class DToP (ICCV 2023).

    Attributes:
        temperature_start: Temperature of the soft top-k at the start; None takes the model's.
        temperature_end: Temperature at the end; None takes the model's.
        temperature_schedule: `cosine` or `linear` way from start to end over the run.
        warmup_share: Share of the run during which fewer tokens are pruned; 0 prunes fully from the start.
        warmup_keep: Keep ratio of every stage at the start of that warm-up.
        warmup_levels: Number of equal steps from there to the model's keep ratios; few, since every change of
            the token counts makes a compiled model compile again.
        elastic_keep: Keep ratios of which every step takes one at random, for all stages; empty takes the
            model's own. One model then serves all of them (`predict --keep-ratio`, `sparseg calibrate`).
        score_weight: Weight of the supervised score loss; 0 switches it off. None is 1 where the scores are
            of the `image` (`model.scoring`), which learn little without, and 0 elsewhere.
        score_target: Which patches the score loss wants ahead: those holding a label `boundary`, or any
            `foreground`. None is the latter for scores of the `image`, the former elsewhere.
        ratio_weight: Weight of the loss that leads independent gates (`model.scoring: gates`) to the share of
            tokens that evaluation keeps; no other scoring takes it.
        protect_min_patches: A class with at most this many patches in a crop keeps all of them, as far as the
            number of kept tokens allows; 0 protects nothing. Prediction knows no protection: combine it with
            a score loss, and watch kept_eval beside kept in the log.
    """

    temperature_start: float | None = Field(default=None, gt=0)
    temperature_end: float | None = Field(default=None, gt=0)
    temperature_schedule: Literal["cosine", "linear"] = "cosine"
    warmup_share: float = Field(default=0.0, ge=0, le=1)
    warmup_keep: float = Field(default=1.0, gt=0, le=1)
    warmup_levels: int = Field(default=5, ge=1)
    elastic_keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    score_weight: float | None = Field(default=None, ge=0)
    score_target: ScoreTarget | None = None
    ratio_weight: float = Field(default=0.0, ge=0)
    protect_min_patches: int = Field(default=0, ge=0)

    def for_scoring(self, scoring: Scoring) -> Self:
        """The same with the score loss that fits a scoring where none was chosen."""
        of_image = scoring == "image"
        weight, target = self.score_weight, self.score_target
        return self.model_copy(
            update={
                "score_weight": float(of_image) if weight is None else weight,
                "score_target": target or ("foreground" if of_image else "boundary"),
            }
        )
