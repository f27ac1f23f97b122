"""`ModelCard`: everything in `model.json`, enough to run a model on a file and to say where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from sparseg.config import Config
from sparseg.models.config import SegmenterConfig
from sparseg.models.peer_config import PeerConfig
from sparseg.preprocessing.config import PreprocessConfig


class Provenance(Config):
    """Where a model came from. Holds no case names and no paths, which may identify patients.

    Attributes:
        dataset: Title of the training dataset.
        num_training_cases: Cases trained on.
        steps: Optimiser steps done.
        seed: Seed of the run.
        minutes: Wall-clock time of the run.
        validation_dice: Mean Dice on the validation cases at these weights, if validated.
        note: Free text: licence, kind of labels, limits.
        versions: Versions of sparseg, torch and MONAI.
    """

    dataset: str = ""
    num_training_cases: int = 0
    steps: int = 0
    seed: int = 0
    minutes: float = 0.0
    validation_dice: float | None = None
    note: str = ""
    versions: dict[str, str] = Field(default_factory=dict)


def _kind_of(model: object) -> str:
    """Peers alone say which network they are."""
    has_name = "network" in model if isinstance(model, Mapping) else isinstance(model, PeerConfig)
    return "peer" if has_name else "sparse_unetr"


AnyModel = Annotated[
    Annotated[SegmenterConfig, Tag("sparse_unetr")] | Annotated[PeerConfig, Tag("peer")],
    Discriminator(_kind_of),
]


class ModelCard(Config):
    """A trained model without its weights.

    Attributes:
        format_version: Version of this file's layout.
        model: Settings of the network: ours, or a peer of MONAI.
        preprocess: How an image becomes its input.
        channels: Names of the input channels, in order.
        labels: Id -> name; 0 is the background.
        regions: Name -> ids of overlapping regions in output order; empty for exclusive classes.
        overlap: Overlap of prediction windows the model was validated with; predicting uses it unless told
            otherwise.
        provenance: Where the model came from.
        weights_sha256: Hash of `weights.safetensors`, hexadecimal.
    """

    format_version: Literal[1] = 1
    model: AnyModel
    preprocess: PreprocessConfig
    channels: tuple[str, ...] = Field(min_length=1)
    labels: dict[int, str]
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    provenance: Provenance = Provenance()
    weights_sha256: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        outputs = len(self.regions) or len(self.labels)
        if outputs != self.model.num_classes:
            raise ValueError(f"the network has {self.model.num_classes} outputs, the labels need {outputs}")
        if len(self.channels) != self.model.in_channels:
            raise ValueError(
                f"the network has {self.model.in_channels} channels, {len(self.channels)} are named"
            )
        return self
