"""`PreprocessRecord`: what was done to a volume's grid, enough to undo it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

import numpy as np

from sparseg.errors import VolumeError
from sparseg.shapes import Triple

AxisMap = tuple[float, float]


@dataclass(frozen=True, eq=False)
class PreprocessRecord:
    """Way from the original grid to the model grid. The *reoriented* grid lies between: RAS order, original
    voxels.

    Attributes:
        original_shape: (H0, W0, D0).
        original_affine: float64 4x4, original voxel -> world mm.
        permutation: Reoriented axis r is original axis `permutation[r]`.
        flips: Whether reoriented axis r runs against its original axis.
        crop_start: First voxel kept, in the reoriented grid.
        crop_stop: One past the last voxel kept, in the reoriented grid.
        model_shape: (H, W, D) of the model grid.
        model_affine: float64 4x4, model voxel -> world mm.
    """

    original_shape: Triple
    original_affine: np.ndarray
    permutation: Triple
    flips: tuple[bool, bool, bool]
    crop_start: Triple
    crop_stop: Triple
    model_shape: Triple
    model_affine: np.ndarray

    @property
    def reoriented_shape(self) -> Triple:
        """Voxels per RAS axis before the crop."""
        a, b, c = self.permutation
        return (self.original_shape[a], self.original_shape[b], self.original_shape[c])

    @property
    def crop_shape(self) -> Triple:
        """Voxels per RAS axis after the crop, before resampling."""
        h, w, d = (stop - start for start, stop in zip(self.crop_start, self.crop_stop, strict=True))
        return (h, w, d)

    @property
    def axis_maps(self) -> tuple[AxisMap, AxisMap, AxisMap]:
        """(scale, offset) per RAS axis: model index = scale * reoriented index + offset.

        The crop is part of the offset; indices outside [crop_start, crop_stop) have no model voxel. An axis
        that was not resampled has scale 1.0 and offset -crop_start exactly.
        """
        original = np.linalg.norm(self.original_affine[:3, :3], axis=0)
        model = np.linalg.norm(self.model_affine[:3, :3], axis=0)
        maps = []
        for axis in range(3):
            scale = float(original[self.permutation[axis]] / model[axis])
            # Rounding of the norms must not turn an untouched axis into a resampled one.
            if abs(scale - 1) < 1e-12:
                scale = 1.0
            centre = (self.crop_start[axis] + self.crop_stop[axis] - 1) / 2
            maps.append((scale, (self.model_shape[axis] - 1) / 2 - scale * centre))
        return (maps[0], maps[1], maps[2])

    def to_json(self) -> str:
        """Return the record as JSON; floats survive bit for bit."""
        values = asdict(self)
        values["original_affine"] = self.original_affine.tolist()
        values["model_affine"] = self.model_affine.tolist()
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> PreprocessRecord:
        """Read what `to_json` wrote.

        Raises:
            VolumeError: the text is not a record.
        """
        names = {field.name for field in fields(cls)}
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise VolumeError(
                "a preprocessing record must be JSON",
                received=str(error),
                remedy="use the text that to_json wrote",
            ) from None
        if not isinstance(values, dict) or set(values) != names:
            raise VolumeError(
                f"a preprocessing record must hold exactly {sorted(names)}",
                received=text[:80],
                remedy="use the text that to_json wrote",
            )
        for name in names:
            is_affine = name.endswith("affine")
            values[name] = np.array(values[name], np.float64) if is_affine else tuple(values[name])
        return cls(**values)
