"""What crosses between the parts of the method: token groups, a stage's decision, settings of one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sparseg.errors import ConfigError
from sparseg.shapes import Triple


@dataclass(frozen=True)
class StageTokens:
    """Tokens that left the encoder at one pruning stage, or the survivors.

    Attributes:
        tokens: `[B, n, E]`, in ascending grid order.
        indices: `[B, n]` int64, ascending positions in the row-major token grid, class token not counted.
        gate: `[B, n]` or None. Straight-through factor of value 1 that carries the gradient to the scores;
            the assembler multiplies with it *after* the group's LayerNorm, which would cancel a factor put
            before it.
        weight: `[B, n]` or None. Only where training removes no token (scoring `gates`): every group then
            spans the grid, n = L, and the weights, 0 or 1 with a gradient, say which tokens belong to it;
            over all groups they sum to 1 at each position.
    """

    tokens: Tensor
    indices: Tensor
    gate: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class StageContext:
    """What a pruning stage may look at besides the tokens.

    Attributes:
        image: `[B, C, H, W, D]`, the window the tokens were made of.
        patch_size: Patch edges in voxels (H, W, D).
        stage: Number of the stage, from 0.
        class_attention: `[B, n]`, attention of the class token to the tokens present in the block before,
            mean over heads; None where the scoring does not ask for it.
    """

    image: Tensor
    patch_size: Triple
    stage: int
    class_attention: Tensor | None = None


class StageScores(NamedTuple):
    """What one pruning stage decided, and on what.

    A named tuple, so that wrappers for several processes see the tensors in it.

    Attributes:
        scores: `[B, n]`, without noise, as evaluation ranks them; carries a gradient to the score predictor.
        indices: `[B, n]` int64, ascending grid positions of the tokens present before the stage.
        kept: `[B, k]` int64, ascending grid positions that went on; while training they may differ from the
            k highest scores by noise and protection. Where training removes no token, those that evaluation
            would keep among what earlier stages let pass.
        weight: `[B, n]` or None, of the tokens that went on; see `StageTokens`.
    """

    scores: Tensor
    indices: Tensor
    kept: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """Settings of token selection for one call of the network; None takes what the model was built with.

    Attributes:
        temperature: tau of the soft top-k (training only).
        keep_ratios: Keep ratio of each pruning stage, also in place of absolute counts.
        noise_scale: Factor on the Gumbel noise (training only).
        protected: bool `[B, L]`, grid positions that are kept before all others (training only). The number
            kept does not change; of more protected tokens than that, those of the highest score stay.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float | None = None
    keep_ratios: tuple[float, ...] | None = None
    noise_scale: float | None = None
    protected: Tensor | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(
                "a temperature must be above 0",
                received=self.temperature,
                remedy="give a positive number, or None for the temperature of the model",
                where="selection.temperature",
            )
        if self.noise_scale is not None and not self.noise_scale >= 0:
            raise ConfigError(
                "a noise scale must be 0 or more",
                received=self.noise_scale,
                remedy="give 0 for no noise, or None for the noise scale of the model",
                where="selection.noise_scale",
            )
