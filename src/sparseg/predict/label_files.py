"""In which kind of file predicted labels are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sparseg.errors import ConfigError
from sparseg.predict.maps import MapKind
from sparseg.predict.outputs import write_labels
from sparseg.volumes.archive import is_archive, unpacked

LabelFormat = Literal["nii.gz", "seg.nrrd", "dicom-seg", "rtstruct"]
SUFFIX_OF: dict[LabelFormat, str] = {
    "nii.gz": ".nii.gz",
    "seg.nrrd": ".seg.nrrd",
    "dicom-seg": ".dcm",
    "rtstruct": ".dcm",
}

LabelWriter = Callable[[Path, np.ndarray, np.ndarray, Mapping[int, str]], None]
"""Takes the output, ids `[H0, W0, D0]` on the image's grid, the grid's affine, and id -> name."""


@dataclass(frozen=True)
class LabelFiles:
    """How labels, and maps beside them, are written.

    Attributes:
        format: Kind of file: NIfTI, a segmentation of 3D Slicer, or one DICOM object that refers to the input
            series: SEG, or the contours of an RTSTRUCT (experimental).
        labelmap: DICOM SEG of type LABELMAP, which few programs read yet, instead of BINARY.
        maps: Maps to write beside the labels as NIfTI: probabilities of all classes, or uncertainty.

    Raises:
        ConfigError: LABELMAP for a format that is not DICOM SEG.
    """

    format: LabelFormat = "nii.gz"
    labelmap: bool = False
    maps: tuple[MapKind, ...] = ()

    def __post_init__(self) -> None:
        if self.labelmap and self.format != "dicom-seg":
            raise ConfigError(
                "LABELMAP is a kind of DICOM SEG object",
                received=f"--labelmap with --format {self.format}",
                remedy="add --format dicom-seg, or leave --labelmap out",
            )

    def writer(self, source: Path, series_uid: str | None) -> LabelWriter:
        """Return what writes the labels of one image, once it is sure that this image can have such a file.

        Args:
            source: Image file or DICOM series folder.
            series_uid: SeriesInstanceUID to take from a folder that holds several.

        Raises:
            VolumeError, GeometryError: a DICOM output is wanted, and the image is not a DICOM series that
                it could refer to.
        """
        if self.format not in ("dicom-seg", "rtstruct"):
            return write_labels  # the suffix tells it which
        # The DICOM libraries cost most of a second, which other formats should not pay for.
        from sparseg.predict.dicom_out import SourceSeries

        series = SourceSeries(source, series_uid=series_uid)
        if self.format == "rtstruct":
            return lambda path, labels, _, names: series.write_structures(path, labels, names)
        kind: Literal["BINARY", "LABELMAP"] = "LABELMAP" if self.labelmap else "BINARY"
        return lambda path, labels, _, names: series.write(path, labels, names, kind=kind)


@contextmanager
def local_image(source: Path) -> Iterator[Path]:
    """Yield the image itself, or the temporary folder that a `.zip` of a DICOM series is unpacked into.

    Raises:
        VolumeError: an archive that cannot be trusted.
    """
    if not is_archive(source):
        yield source
        return
    with unpacked(source) as folder:
        yield folder
