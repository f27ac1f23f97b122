"""Options of `sparseg predict` that trade quality for time: a keep ratio, or a deadline that chooses one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import cyclopts

if TYPE_CHECKING:
    from sparseg.predict.case import CaseResult
    from sparseg.predict.settings import PredictSettings

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|min)")
_SECONDS = {"s": 1.0, "min": 60.0}


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class SpeedOptions:
    """How many tokens are kept.

    Parameters
    ----------
    keep_ratio
        Share of the tokens that stays at a pruning stage, e.g. 0.25; given once for all stages, or once per
        stage; default: what the model was built with. Fewer tokens are faster and may cost quality.
    deadline
        Time for one case from file to file, e.g. 20s or 1.5min: per case the keep ratio of best Dice that
        fits, by the curve that `sparseg calibrate` stored in the model; the fastest, with a warning, where
        none fits.
    """

    keep_ratio: Annotated[tuple[float, ...], cyclopts.Parameter(negative="")] = ()
    deadline: str | None = None

    def applied(self, settings: PredictSettings) -> PredictSettings:
        """The settings with these choices.

        Raises:
            ConfigError: both at once, or a time that cannot be read.
        """
        from sparseg.errors import ConfigError

        if self.keep_ratio and self.deadline is not None:
            raise ConfigError(
                "a deadline chooses the keep ratio; only one of the two can be given",
                received=f"--keep-ratio {self.keep_ratio[0]:g} --deadline {self.deadline}",
                remedy="leave one of them out",
                code="deadline-and-ratio",
            )
        deadline = None if self.deadline is None else seconds_of(self.deadline)
        return replace(settings, keep_ratios=self.keep_ratio or None, deadline=deadline)


def seconds_of(text: str) -> float:
    """Read `20s` or `1.5min`.

    Raises:
        ConfigError: anything else, or zero.
    """
    from sparseg.errors import ConfigError

    found = _DURATION.fullmatch(text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise ConfigError(
            "a time must be a number above 0 with its unit, s or min",
            received=text,
            remedy="e.g. --deadline 20s or --deadline 1.5min",
            where="--deadline",
            code="deadline-range",
        )
    return float(found[1]) * _SECONDS[found[2]]


def deadline_warning(result: CaseResult) -> str | None:
    """What must be said about a case that missed its deadline, or that was expected to."""
    choice, seconds = result.choice, result.total_seconds
    if choice is None or (choice.fits and seconds <= choice.deadline):
        return None
    took = f"it took {seconds:.1f} s"
    if not choice.fits:
        expected = f"even the fastest setting was expected to take {choice.predicted:.1f} s"
        return f"deadline of {choice.deadline:g} s: {expected} and was used; {took}"
    return f"deadline of {choice.deadline:g} s missed: {choice.predicted:.1f} s were expected, {took}"
