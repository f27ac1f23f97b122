"""Keep ratios asked for at prediction, in place of those a model was built with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from sparseg.errors import ConfigError
from sparseg.models.network import Network
from sparseg.tokens.stages import Selection

# One keep ratio per pruning stage; None stands for what the model was built with.
Ratios = tuple[float, ...] | None


def stage_ratios(net: Network, wanted: Ratios, *, where: object = "keep_ratios") -> Ratios:
    """The keep ratio of each pruning stage of `net`.

    Args:
        net: The network.
        wanted: One for all stages, or one per stage; None for those of the network.
        where: What errors call the model.

    Raises:
        ConfigError: a network without pruning stages, a ratio out of range, another number of ratios than one
            or that of the stages, or a stage that would keep no token.
    """
    if wanted is None:
        return None
    shown, stages = ", ".join(f"{ratio:g}" for ratio in wanted), len(net.config.pruning_stages)
    if not stages:
        raise ConfigError(
            "keep ratios need a model with pruning stages; this one is dense and keeps all tokens",
            received=shown,
            remedy="leave the keep ratio out, or take a model with pruning stages",
            where=where,
            code="keep-ratio-dense",
        )
    if any(not 0.0 < ratio <= 1.0 for ratio in wanted):
        raise ConfigError(
            "a keep ratio must be above 0 and at most 1",
            received=shown,
            remedy="it is the share of tokens that stays at a stage, e.g. 0.25",
            where=where,
            code="keep-ratio-range",
        )
    if len(wanted) not in (1, stages):
        raise ConfigError(
            f"keep ratios must be one for all pruning stages, or one for each of the {stages}",
            received=shown,
            remedy="give one",
            where=where,
            code="keep-ratio-stages",
        )
    ratios = tuple(wanted) if len(wanted) == stages else tuple(wanted) * stages
    # The published count rule rounds down to nothing.
    if min(token_counts(net, ratios)) < 1:
        raise ConfigError(
            "every pruning stage must keep at least one token",
            received=shown,
            remedy="raise the keep ratio",
            where=where,
            code="keep-ratio-range",
        )
    return ratios


def token_counts(net: Network, ratios: Ratios = None) -> list[int]:
    """Patch tokens of one window at the start and after each pruning stage."""
    return net.token_counts(keep_ratios=ratios)


def with_ratios(net: Network, ratios: Ratios) -> Callable[[Tensor], Tensor]:
    """The network as a function of windows `[B, C, *roi]`, with these keep ratios."""
    return net if ratios is None else partial(net, selection=Selection(keep_ratios=ratios))
