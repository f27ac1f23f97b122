"""How images are read where the strict rules need a decision of the user."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sparseg.volumes.archive import is_archive, unpacked
from sparseg.volumes.io import read_volume
from sparseg.volumes.volume import Volume


@dataclass(frozen=True)
class ReadOptions:
    """Decisions for images that would be refused otherwise, and the size above which all are.

    Attributes:
        affine_choice: Which form to believe where sform and qform contradict each other.
        assume_orientation: Axis codes such as "LPS" for a file that states no orientation.
        nonfinite: Value that replaces NaN and infinite voxels.
        series_uid: SeriesInstanceUID of the series to take from a DICOM folder that holds several.
        max_voxels: Images of more voxels are refused by what they declare, before memory is taken.
    """

    affine_choice: Literal["refuse", "sform", "qform"] = "refuse"
    assume_orientation: str | None = None
    nonfinite: float | None = None
    series_uid: str | None = None
    max_voxels: int = 2**31

    def read(self, path: Path) -> Volume:
        """Read an image, or the DICOM series in a `.zip`; see `read_volume` and `unpacked` for the errors."""
        if is_archive(path):
            with unpacked(path) as folder:
                return replace(self.read(folder), source=str(path))
        if path.is_dir():
            return read_volume(path, series_uid=self.series_uid, max_voxels=self.max_voxels)
        return read_volume(
            path,
            affine_choice=self.affine_choice,
            assume_orientation=self.assume_orientation,
            nonfinite=self.nonfinite,
            max_voxels=self.max_voxels,
        )
