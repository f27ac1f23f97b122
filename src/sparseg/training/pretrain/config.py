"""Settings of a pre-training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from sparseg.config import Config, parse_config
from sparseg.errors import ConfigError
from sparseg.models.autoencoder import AutoencoderConfig
from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset
from sparseg.preprocessing.config import PreprocessConfig
from sparseg.training.config import Axes, OptimizerConfig, Probability, TrainConfig

# What a pre-training has in common with the training it is for; batch, augmentation and length are its own.
_SHARED = ("preset", "model", "preprocess", "precision", "num_workers", "seed")


class CropConfig(Config):
    """Random choice and light changes of pre-training crops; probabilities are per crop.

    Attributes:
        content_share: A crop with a smaller share of voxels inside the patient is drawn again (3 times).
        flip: Probability per axis (right-left, anterior-posterior, superior-inferior).
        intensity_scale: Relative change of intensity, as (probability, factor).
        intensity_shift: Shift of intensity, as (probability, offset in model units).
    """

    content_share: Probability = 0.2
    flip: Axes = (0.5, 0.5, 0.5)
    intensity_scale: tuple[Probability, float] = (0.3, 0.1)
    intensity_shift: tuple[Probability, float] = (0.3, 0.1)


class PretrainConfig(Config):
    """Everything a pre-training depends on besides the images.

    Attributes:
        preset: Named model whose encoder is trained.
        model: Overrides of the preset; should be those of the training that follows. `in_channels` follows
            the dataset; pruning, assembly and decoder are not used.
        preprocess: None takes the modality's intensity mapping and the median spacing of the cases.
        autoencoder: Mask, target and decoder.
        crops: Choice and changes of the crops.
        optimizer: AdamW and its schedule.
        cases: `all` learns from training and test images alike (labels are never used); `training` leaves the
            test images out, so that scores on them are those of images never seen.
        batch_size: Crops per step and process.
        max_steps: Optimiser steps of the whole schedule.
        max_minutes: Wall-clock limit; the schedule is compressed to end with it.
        store_every: Steps between stored states, encoders and pictures.
        keep_states: States kept; an older one is used where the newest is damaged.
        max_bad_steps: Steps in a row with a loss or gradient that is not finite before the run gives up.
        num_workers: Processes that cut crops beside the training process.
        precision: fp32, or bf16/fp16 autocast on a GPU that has it.
        seed: Fixes the initial weights, every crop and every mask.
    """

    preset: str = "vit_tiny_p8"
    model: dict[str, Any] = Field(default_factory=dict)
    preprocess: PreprocessConfig | None = None
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    crops: CropConfig = CropConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    cases: Literal["all", "training"] = "all"
    batch_size: int = Field(default=4, ge=1)
    max_steps: int = Field(default=2000, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    store_every: int = Field(default=200, ge=1)
    keep_states: int = Field(default=2, ge=1)
    max_bad_steps: int = Field(default=20, ge=1)
    num_workers: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = Field(default=0, ge=0)


def from_training_settings(values: Mapping[str, Any], where: object = "") -> dict[str, Any]:
    """What a settings file says about pre-training.

    Args:
        values: Content of the file. Settings of a training (a plan) have keys that a pre-training has not;
            of these, model, preprocessing, precision, loader processes and seed are taken.
        where: The file, for messages.

    Raises:
        ConfigError: settings of a training that are not valid.
    """
    only_training = set(TrainConfig.model_fields) - set(PretrainConfig.model_fields)
    if not only_training & set(values):
        return dict(values)
    parse_config(TrainConfig, values, where=where)
    return {name: values[name] for name in _SHARED if name in values}


def segmenter_config(config: PretrainConfig, num_channels: int, where: object = "model") -> SegmenterConfig:
    """Settings of the segmenter that the encoder is for.

    Raises:
        ConfigError: unknown preset or setting, a peer, or a channel count that is not the dataset's.
    """
    if config.model.get("in_channels", num_channels) != num_channels:
        raise ConfigError(
            f"the dataset decides model.in_channels ({num_channels})",
            received=config.model["in_channels"],
            remedy="remove it from the configuration",
            where="model.in_channels",
        )
    values = {**preset(config.preset), **config.model, "in_channels": num_channels}
    if "network" in values:
        raise ConfigError(
            "a pre-training is of an encoder of token sparsification",
            received=f"preset {config.preset}, a peer",
            remedy="choose a preset that is no peer",
            where="preset",
        )
    return parse_config(SegmenterConfig, values, where=where)
