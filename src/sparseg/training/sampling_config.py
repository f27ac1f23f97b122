"""Settings of where crops are cut."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sparseg.config import Config


class SamplingConfig(Config):
    """Which class a crop with a labelled centre is centred on, and in which case.

    Attributes:
        classes: How often each class is chosen: equal; frequency, in proportion to its voxels; small_first,
            in inverse proportion to the square root of its median size over the cases that have it.
        class_first: Choose the class among those of all cases, then a case that has it. Otherwise every case
            is equally likely, and a class that few cases have is rarely seen.
        boundary_share: Share of these crops that are centred on the surface of the class instead of anywhere
            in it.
    """

    classes: Literal["equal", "frequency", "small_first"] = "equal"
    class_first: bool = False
    boundary_share: Annotated[float, Field(ge=0, le=1)] = 0.0
