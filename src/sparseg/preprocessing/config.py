"""Settings of the preprocessing: grid, foreground crop, intensity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sparseg.config import Config

Finite = Annotated[float, Field(allow_inf_nan=False)]
Millimetres = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]

# Half way between air and soft tissue: lung walls and skin stay, air and thin sheets go.
CT_FOREGROUND_HU = -500.0


class CTIntensity(Config):
    """Hounsfield units are clipped and mapped linearly to [-1, 1].

    Attributes:
        clip: Lower and upper bound in HU; the defaults are the abdominal setting of the paper.
    """

    kind: Literal["ct"] = "ct"
    clip: tuple[Finite, Finite] = (-958.0, 326.0)

    @field_validator("clip")
    @classmethod
    def _ascending(cls, clip: tuple[float, float]) -> tuple[float, float]:
        if clip[0] >= clip[1]:
            raise ValueError("the lower bound of clip must be below the upper one")
        return clip


class MRIntensity(Config):
    """Each channel is shifted and scaled to mean 0, deviation 1 over its non-zero voxels; zero stays zero."""

    kind: Literal["mr"] = "mr"


class PreprocessConfig(Config):
    """How an image on its own grid becomes the model's input.

    Attributes:
        orientation: Array axes of the model grid; always right, anterior, superior.
        spacing: Voxel edges of the model grid in mm, in RAS axis order; None keeps those of the image.
        intensity: Mapping of the voxel values.
        foreground_crop: Cut the image to the bounding box of its foreground.
        foreground_threshold: A voxel is foreground if any channel is above this value (image units, before
            the intensity mapping). None stands for -500 HU with CT and for "not zero" with MR.
        margin_mm: Width kept around the foreground box on every side.
    """

    orientation: Literal["RAS"] = "RAS"
    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = None
    intensity: Annotated[CTIntensity | MRIntensity, Field(discriminator="kind")]
    foreground_crop: bool = True
    foreground_threshold: Finite | None = None
    margin_mm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0

    @property
    def background_value(self) -> float:
        """Prepared value of what lies outside the patient or the image: air (-1) in CT, 0 in MR."""
        return -1.0 if isinstance(self.intensity, CTIntensity) else 0.0


PAPER_ABDOMEN_CT = PreprocessConfig(spacing=(1.5, 1.5, 2.0), intensity=CTIntensity())
PAPER_BRAIN_MR = PreprocessConfig(spacing=(1.0, 1.0, 1.0), intensity=MRIntensity())
