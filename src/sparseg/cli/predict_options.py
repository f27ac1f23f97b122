"""Options of `sparseg predict`, in groups: how images are read, windows run and labels written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

if TYPE_CHECKING:
    from sparseg.predict.cleanup import Cleanup
    from sparseg.predict.label_files import LabelFiles
    from sparseg.predict.reading import ReadOptions
    from sparseg.predict.settings import PredictSettings


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class WindowOptions:
    """How the windows are run.

    Parameters
    ----------
    overlap
        Share of the window by which neighbouring windows overlap; default: what the model was validated with.
    batch_size
        Windows per call of the network.
    device
        Where the network runs; auto takes a GPU if there is one.
    mirror
        Mirror every window left-right (lr), front-back (ap) or up-down (si), too, and average the logits;
        each doubles the time. Only for models trained with such flips, and never lr where labels name a side.
    keep_empty
        Run windows that hold only air (CT) or zeros (MR), too, instead of calling them background.
    body_only
        Lay the windows over the patient's body, CT only: fewer of them where a table widens the image. What
        lies outside the box of everything thicker than 2 cm is background.
    """

    overlap: float | None = None
    batch_size: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    mirror: Annotated[tuple[Literal["lr", "ap", "si"], ...], cyclopts.Parameter(negative="")] = ()
    keep_empty: Annotated[bool, cyclopts.Parameter(negative="")] = False
    body_only: Annotated[bool, cyclopts.Parameter(negative="")] = False

    def check(self) -> None:
        """Refuse numbers out of range.

        Raises:
            ConfigError: a batch without windows, or an overlap outside 0 <= x < 1.
        """
        from sparseg.errors import ConfigError

        if self.batch_size < 1 or (self.overlap is not None and not 0 <= self.overlap < 1):
            raise ConfigError(
                "batch size must be at least 1, overlap at least 0 and below 1",
                received=f"batch size {self.batch_size}, overlap {self.overlap}",
                remedy="e.g. --batch-size 1 --overlap 0.5",
            )

    def settings(self, reading: ReadOptions, files: LabelFiles, cleanup: Cleanup) -> PredictSettings:
        """All settings of a predictor."""
        from sparseg.cli.settings import choose_device
        from sparseg.predict.settings import PredictSettings

        return PredictSettings(
            self.overlap,
            self.batch_size,
            choose_device(self.device),
            reading,
            files,
            cleanup,
            mirror=self.mirror,
            keep_empty=self.keep_empty,
            body_only=self.body_only,
        )


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class ReadingOptions:
    """Decisions for images that would be refused otherwise.

    Parameters
    ----------
    affine
        Which form of a NIfTI header to believe where sform and qform contradict each other.
    assume_orientation
        Axis codes, e.g. LPS, for NIfTI files that state no orientation.
    nonfinite
        Value that replaces NaN and infinite voxels of NIfTI files.
    series_uid
        SeriesInstanceUID of the series to take from a DICOM folder that holds several.
    max_voxels
        Refuse larger images, by what their headers declare and before any memory is taken.
    """

    affine: Literal["refuse", "sform", "qform"] = "refuse"
    assume_orientation: str | None = None
    nonfinite: float | None = None
    series_uid: str | None = None
    max_voxels: int = 2**31

    def reading(self) -> ReadOptions:
        """The same for a predictor."""
        from sparseg.predict.reading import ReadOptions

        return ReadOptions(
            self.affine, self.assume_orientation, self.nonfinite, self.series_uid, self.max_voxels
        )


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class LabelOptions:
    """How labels are cleaned up and written.

    Parameters
    ----------
    format
        Kind of the label files: nii.gz; seg.nrrd for 3D Slicer; dicom-seg, one DICOM SEG object CASE.dcm
        that refers to the input series and, as DICOM demands, carries the patient and study of that series;
        or rtstruct (experimental), one RTSTRUCT object CASE.dcm of the same kind, with contours.
    labelmap
        DICOM SEG of type LABELMAP instead of BINARY; few programs read it yet.
    save
        Maps to write to maps/CASE_MAP.nii.gz, too: probabilities of all classes, or the uncertainty of
        the label (1 less its probability); may be given several times. Clean-up does not change them.
    largest_component
        Name of a class of which only the largest component is kept; may be given several times; all for all.
    fill_holes
        Name of a class whose holes are filled; may be given several times; all for all.
    min_ml
        Components of any class below this volume in ml are removed.
    """

    format: Literal["nii.gz", "seg.nrrd", "dicom-seg", "rtstruct"] = "nii.gz"
    labelmap: Annotated[bool, cyclopts.Parameter(negative="")] = False
    save: Annotated[tuple[Literal["probabilities", "uncertainty"], ...], cyclopts.Parameter(negative="")] = ()
    largest_component: Annotated[tuple[str, ...], cyclopts.Parameter(negative="")] = ()
    fill_holes: Annotated[tuple[str, ...], cyclopts.Parameter(negative="")] = ()
    min_ml: float = 0.0

    def files(self) -> LabelFiles:
        """How label files are written."""
        from sparseg.predict.label_files import LabelFiles

        return LabelFiles(self.format, self.labelmap, self.save)

    def cleanup(self) -> Cleanup:
        """What is removed and filled before."""
        from sparseg.predict.cleanup import Cleanup

        return Cleanup(self.largest_component, self.fill_holes, self.min_ml)
