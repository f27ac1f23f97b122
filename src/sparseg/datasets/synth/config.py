"""Settings of synthetic subjects."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sparseg.config import Config

_Edge = Annotated[int, Field(ge=1, le=1024)]
_Spacing = Annotated[float, Field(gt=0, le=100)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SynthConfig(Config):
    """How subjects differ from their source and from each other. Every range is drawn anew per subject.

    Intensities are in HU for CT and in units of 0 to about 1000 for MR.

    Attributes:
        seed: Seed of all random choices; subject i depends on (seed, i) alone.
        modality: `ct` keeps the HU of the source's tissues up to `hu_jitter`; `mr` draws any contrast.
        intensity: `classes` draws one Gaussian per tissue (SynthSeg); `image` warps the real image.
        channels: Contrasts of an MR subject with `classes`, 1 to 4; default 1. With `image`, those of the
            image.
        shape: Voxels per axis; default: the source's, or what covers it at `spacing`.
        spacing: Voxel edges in mm, in the source's axis order; default: the source's.
        background_classes: Tissues that the unlabelled rest is divided into, by intensity.
        rotation_degrees: Largest rotation about each axis.
        scaling: Largest relative change of size per axis.
        shear: Largest shear.
        translation_mm: Largest shift per axis.
        deform_mm: Standard deviation of the velocity (about: of the displacement) at the control points.
        deform_grid_mm: Distance of the control points of the deformation.
        class_mean: Range of a tissue's mean (MR).
        class_std: Range of a tissue's standard deviation (MR).
        hu_jitter: Standard deviation of the shift of a tissue's mean in HU (CT).
        bias: Largest standard deviation of the logarithm of the bias field (MR).
        bias_grid_mm: Distance of the control points of the bias field.
        gamma: Standard deviation of the logarithm of the exponent that bends the grey scale (MR).
        noise: Largest standard deviation of the noise.
        blur_mm: Largest standard deviation of the blur.
        max_thickness_mm: Largest slice thickness; slices run along a random axis in MR, along the body in CT.
            0: none thicker than the voxels.
        native_resolution: Keep the thick slices instead of resampling to the grid; labels follow.
    """

    seed: int = Field(0, ge=0, lt=2**63)
    modality: Literal["ct", "mr"] = "mr"
    intensity: Literal["classes", "image"] = "classes"
    channels: int | None = Field(None, ge=1, le=4)
    shape: tuple[_Edge, _Edge, _Edge] | None = None
    spacing: tuple[_Spacing, _Spacing, _Spacing] | None = None
    background_classes: int = Field(6, ge=1, le=32)
    rotation_degrees: float = Field(10.0, ge=0, le=180)
    scaling: float = Field(0.1, ge=0, le=0.5)
    shear: float = Field(0.02, ge=0, le=0.2)
    translation_mm: _NotNegative = 10.0
    deform_mm: _NotNegative = 4.0
    deform_grid_mm: float = Field(40.0, gt=0, allow_inf_nan=False)
    class_mean: tuple[_NotNegative, _NotNegative] = (50.0, 950.0)
    class_std: tuple[_NotNegative, _NotNegative] = (10.0, 80.0)
    hu_jitter: _NotNegative = 15.0
    bias: float = Field(0.3, ge=0, le=2)
    bias_grid_mm: float = Field(80.0, gt=0, allow_inf_nan=False)
    gamma: float = Field(0.2, ge=0, le=1)
    noise: _NotNegative = 25.0
    blur_mm: _NotNegative = 0.8
    max_thickness_mm: _NotNegative = 5.0
    native_resolution: bool = False

    @model_validator(mode="after")
    def _check_channels(self) -> Any:
        several = self.channels is not None and self.channels > 1
        if several and (self.modality == "ct" or self.intensity == "image"):
            raise ValueError(
                "channels may be set for modality mr with intensity classes only; "
                f"channels is {self.channels}, modality {self.modality}, intensity {self.intensity}"
            )
        for name in ("class_mean", "class_std"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be a range, low before high; {name} is ({low}, {high})")
        return self
