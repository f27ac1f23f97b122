"""Settings of a training run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sparseg.config import Config
from sparseg.preprocessing.config import PreprocessConfig
from sparseg.training.distill_config import DistillConfig
from sparseg.training.loss_config import LossConfig
from sparseg.training.sampling_config import SamplingConfig
from sparseg.training.selection_config import SelectionConfig

Probability = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Axes = tuple[Probability, Probability, Probability]


class AugmentConfig(Config):
    """Random changes to each training crop; probabilities are per crop.

    Attributes:
        flip: Probability per axis (right-left, anterior-posterior, superior-inferior). Right-left flips swap
            paired organs' labels' meaning; set the first to 0 where left and right are different classes.
        rot90: Probability of a quarter turn in the axial plane (square crops only).
        affine: Probability of rotation, scaling and shift.
        rotate_deg: Largest rotation about each axis, in degrees.
        scale: Largest relative change of size, e.g. 0.2 for 0.8 to 1.2.
        elastic: Probability of a smooth random deformation before the affine step.
        elastic_spacing_vox: Distance of the deformation's control points, in voxels.
        elastic_magnitude: Largest shift of a control point, as a share of the crop's edge.
        intensity_scale: Relative change of intensity, as (probability, factor).
        intensity_shift: Shift of intensity, as (probability, offset in model units).
        label_contrast: Common shift of the intensity of all labelled structures, as (probability, largest
            offset in model units): a scan with and without contrast agent.
        class_contrast: Further shift of each structure on its own, as (probability per structure, largest
            offset in model units).
        contrast: Gamma, as (probability, largest log2 gamma).
        noise: Gaussian noise, as (probability, standard deviation in model units).
        blur: Gaussian smoothing, as (probability, largest sigma in voxels).
        thin_slab: Probability that only a slab of the crop along the last axis is kept, the rest being
            padding, as in a scan of few slices.
    """

    flip: Axes = (0.2, 0.2, 0.2)
    rot90: Probability = 0.2
    affine: Probability = 0.3
    rotate_deg: float = Field(default=15.0, ge=0, le=180)
    scale: float = Field(default=0.2, ge=0, lt=1)
    elastic: Probability = 0.0
    elastic_spacing_vox: float = Field(default=24.0, gt=0)
    elastic_magnitude: float = Field(default=0.1, ge=0, lt=1)
    intensity_scale: tuple[Probability, Amount] = (0.1, 0.1)
    intensity_shift: tuple[Probability, Amount] = (0.1, 0.1)
    label_contrast: tuple[Probability, Amount] = (0.0, 0.2)
    class_contrast: tuple[Probability, Amount] = (0.0, 0.2)
    contrast: tuple[Probability, Amount] = (0.1, 0.5)
    noise: tuple[Probability, Amount] = (0.1, 0.05)
    blur: tuple[Probability, Amount] = (0.1, 1.0)
    thin_slab: Probability = 0.0


class OptimizerConfig(Config):
    """AdamW with layer-wise learning-rate decay in the encoder.

    Attributes:
        lr: Largest learning rate.
        betas: AdamW's averages.
        weight_decay: Not applied to biases, norms, position table and class token.
        layer_decay: Factor on the learning rate per block, counted from the last.
        warmup_steps: Steps of linear warm-up.
        min_lr_share: Share of `lr` at the end of the cosine.
        clip_norm: Largest norm of the gradient.
    """

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.05, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    warmup_steps: int = Field(default=50, ge=0)
    min_lr_share: float = Field(default=0.01, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)


class TrainConfig(Config):
    """Everything a run depends on besides the data.

    Attributes:
        preset: Named model.
        model: Overrides of the preset; `in_channels` and `num_classes` always follow the dataset.
        preprocess: None takes the modality's intensity mapping and the median spacing of the training cases.
        loss: See below.
        selection: See below.
        distill: See below.
        sampling: See below.
        augment: See below.
        optimizer: See below.
        batch_size: Crops per step and process.
        positive_share: Share of the crops centred on a labelled voxel (classes equally likely).
        accumulate: Batches per optimiser step: the effective batch is this many times as large, the memory is
            not.
        ema_decay: Decay of the exponential moving average of the weights, such as 0.999; the average is then
            what is validated and kept. 0 is off.
        max_steps: Optimiser steps of the whole schedule.
        max_minutes: Wall-clock limit; the schedule is compressed to end with it.
        patience: Stop after this many validations in a row without a better one; None never does.
        validate_every: Steps between validations; models and state are stored then.
        checkpoint_every: Steps between states stored besides; None stores none besides.
        keep_states: States kept; an older one is used where the newest is damaged.
        max_bad_steps: Steps in a row with a loss or gradient that is not finite before the run gives up.
        fold: Which fold validates, counted from 0; the others train.
        num_folds: Folds that are made where the dataset brings none.
        overlap: Overlap of windows in validation, and by default when the model predicts.
        num_workers: Processes that cut and augment crops beside the training process.
        precision: fp32, or bf16/fp16 autocast on a GPU that has it.
        compile: Parts that torch.compile turns into faster code at the first steps, which then take up to
            minutes: the transformer `blocks`, or `all` (for GPUs; the decoder does not compile on every CPU).
        channels_last: Keep feature maps channels last, which some GPUs convolve faster.
        activation_checkpointing: Compute activations again in the backward pass instead of keeping them: less
            memory, about a third slower.
        strategy: How several processes train: `ddp` gives each the whole network; `fsdp` shares out weights,
            gradients and optimiser state (FSDP2): less memory, more traffic.
        deterministic: Refuse operations whose result may differ between two runs (matters on a GPU).
        weights_dtype: Type of the stored weights of the best and last model.
        seed: Fixes the split, the initial weights, every crop and all noise.
        trackers: Where numbers and pictures go besides the run's own log; each needs its optional package.
        provenance: What the model card should say about the data (free text).
    """

    preset: str = "vit_tiny_p8"
    model: dict[str, Any] = Field(default_factory=dict)
    preprocess: PreprocessConfig | None = None
    loss: LossConfig = LossConfig()
    selection: SelectionConfig = SelectionConfig()
    distill: DistillConfig = DistillConfig()
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(default=2, ge=1)
    positive_share: Probability = 0.5
    accumulate: int = Field(default=1, ge=1)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    max_steps: int = Field(default=1000, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, ge=1)
    validate_every: int = Field(default=200, ge=1)
    checkpoint_every: int | None = Field(default=None, ge=1)
    keep_states: int = Field(default=2, ge=1)
    max_bad_steps: int = Field(default=20, ge=1)
    fold: int = Field(default=0, ge=0)
    num_folds: int = Field(default=5, ge=2)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    num_workers: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: Literal["none", "blocks", "all"] = "none"
    channels_last: bool = False
    activation_checkpointing: bool = False
    strategy: Literal["ddp", "fsdp"] = "ddp"
    deterministic: bool = False
    weights_dtype: Literal["float32", "float16"] = "float32"
    seed: int = Field(default=0, ge=0)
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    provenance: str = ""
