"""Settings of what a sparse network learns from a dense one."""

from __future__ import annotations

from pydantic import Field

from sparseg.config import Config


class DistillConfig(Config):
    """Distillation from the teacher that `sparseg sparsify` puts into the run folder.

    Attributes:
        weight: Weight of the divergence from the teacher's logits; 0 learns from the labels alone.
        temperature: Divides the logits of both; higher ones make more of the classes that are not first.
    """

    weight: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=2.0, gt=0)
