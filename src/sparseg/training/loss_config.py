"""Settings of the loss."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparseg.config import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LossConfig(Config):
    """Dice, alone or with a term that looks at each voxel by itself.

    Attributes:
        kind: dice, dice_ce (with cross-entropy) or dice_focal (with focal loss). None takes the paper's:
            dice_ce for classes, dice for overlapping regions.
        dice_weight: Factor on Dice.
        ce_weight: Factor on the voxel-wise term, cross-entropy or focal.
        focal_gamma: How much the focal loss turns away from voxels that are right already; 0 is
            cross-entropy.
        include_background: Whether the background counts as a class in Dice; the voxel-wise term always sees
            it. Regions have none.
        class_weights: Weight of each output in the voxel-wise term: none, inverse_frequency (of the voxels of
            the training cases, mean 1), or one number per output, background first.
        deep_weights: Weights of the outputs of deep supervision, finest first; they are made to sum to 1.
    """

    kind: Literal["dice_ce", "dice", "dice_focal"] | None = None
    dice_weight: Weight = 1.0
    ce_weight: Weight = 1.0
    focal_gamma: float = Field(default=2.0, ge=0, le=10)
    include_background: bool = True
    class_weights: Literal["none", "inverse_frequency"] | tuple[Weight, ...] = "none"
    deep_weights: tuple[Weight, ...] = Field(default=(1.0, 0.5, 0.25), min_length=1)

    @model_validator(mode="after")
    def _terms_weigh_something(self) -> Self:
        if self.dice_weight == 0 and (self.kind == "dice" or self.ce_weight == 0):
            raise ValueError("at least one term of the loss must have a weight above 0")
        if self.deep_weights[0] == 0:
            raise ValueError("the finest output, first in deep_weights, must have a weight above 0")
        if isinstance(self.class_weights, tuple) and not any(self.class_weights):
            raise ValueError("at least one of class_weights must be above 0")
        if self.kind == "dice" and self.class_weights != "none":
            raise ValueError("class_weights act on the voxel-wise term, which kind dice does not have")
        return self
