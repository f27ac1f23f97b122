"""`sparseg predict`: segment image files or DICOM series."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

if TYPE_CHECKING:
    from rich.progress import Progress

    from sparseg.errors import SparsegError
    from sparseg.predict.inputs import PredictionCase
    from sparseg.predict.predictor import CaseResult


def predict(
    *inputs: Annotated[Path, cyclopts.Parameter(required=True)],
    model: Annotated[tuple[Path, ...], cyclopts.Parameter(negative="")],
    out: Path,
    overlap: float | None = None,
    batch_size: int = 1,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    affine: Literal["refuse", "sform", "qform"] = "refuse",
    assume_orientation: str | None = None,
    nonfinite: float | None = None,
    series_uid: str | None = None,
    format: Literal["nii.gz", "seg.nrrd", "dicom-seg"] = "nii.gz",
    labelmap: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    largest_component: Annotated[tuple[str, ...], cyclopts.Parameter(negative="")] = (),
    fill_holes: Annotated[tuple[str, ...], cyclopts.Parameter(negative="")] = (),
    min_ml: float = 0.0,
    mirror: Annotated[tuple[Literal["lr", "ap", "si"], ...], cyclopts.Parameter(negative="")] = (),
    keep_empty: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Segment images into label files on their own grids.

    Writes a label file per case, statistics.json and report.json. Exit code 0: all done; 1: some cases
    failed, the others are complete; 2: bad input, nothing written for it.

    Parameters
    ----------
    inputs
        NIfTI files, DICOM series folders, .zip files of one series, or folders that hold files and series.
    model
        Model folder, training run, or cross-validation (all its folds); given several times, or with several
        folds, the mean of the models' probabilities decides.
    out
        Folder for the label files.
    overlap
        Share of the window by which neighbouring windows overlap; default: what the model was validated with.
    batch_size
        Windows per call of the network.
    device
        Where the network runs; auto takes a GPU if there is one.
    affine
        Which form of a NIfTI header to believe where sform and qform contradict each other.
    assume_orientation
        Axis codes, e.g. LPS, for NIfTI files that state no orientation.
    nonfinite
        Value that replaces NaN and infinite voxels of NIfTI files.
    series_uid
        SeriesInstanceUID of the series to take from a DICOM folder that holds several.
    format
        Kind of the label files: nii.gz; seg.nrrd for 3D Slicer; or dicom-seg, one DICOM SEG object <case>.dcm
        that refers to the input series and, as DICOM demands, carries the patient and study of that series.
    labelmap
        DICOM SEG of type LABELMAP instead of BINARY; few programs read it yet.
    largest_component
        Name of a class of which only the largest component is kept; may be given several times; all for all.
    fill_holes
        Name of a class whose holes are filled; may be given several times; all for all.
    min_ml
        Components of any class below this volume in ml are removed.
    mirror
        Mirror every window left-right (lr), front-back (ap) or up-down (si), too, and average the logits;
        each doubles the time. Only for models trained with such flips, and never lr where labels name a side.
    keep_empty
        Run windows that hold only air (CT) or zeros (MR), too, instead of calling them background.
    """
    from sparseg.cli.output import progress_bar
    from sparseg.cli.settings import choose_device
    from sparseg.errors import ConfigError, InputError
    from sparseg.predict.batch import predict_cases
    from sparseg.predict.cleanup import Cleanup
    from sparseg.predict.ensemble import load_predictor
    from sparseg.predict.inputs import collect_cases
    from sparseg.predict.label_files import SUFFIX_OF, LabelFiles
    from sparseg.predict.predictor import PredictSettings
    from sparseg.predict.reading import ReadOptions

    if batch_size < 1 or (overlap is not None and not 0 <= overlap < 1):
        raise ConfigError(
            "batch size must be at least 1, overlap at least 0 and below 1",
            received=f"batch size {batch_size}, overlap {overlap}",
            remedy="e.g. --batch-size 1 --overlap 0.5",
        )
    files = LabelFiles(format, labelmap)
    cleanup = Cleanup(largest_component, fill_holes, min_ml)
    cases = collect_cases(inputs, out, suffix=SUFFIX_OF[format])
    reading = ReadOptions(affine, assume_orientation, nonfinite, series_uid)
    settings = PredictSettings(
        overlap,
        batch_size,
        choose_device(device),
        reading,
        files,
        cleanup,
        mirror=mirror,
        keep_empty=keep_empty,
    )
    predictor = load_predictor(model, settings)
    with progress_bar() as bar:
        watcher = _Watcher(bar)
        errors = predict_cases(predictor, cases, out, watcher)
    if not errors:
        return 0
    return 2 if len(errors) == len(cases) and all(isinstance(error, InputError) for error in errors) else 1


class _Watcher:
    """One line per case, and a bar over its windows."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def on_start(self, case: PredictionCase) -> Callable[[int, int], None]:
        """Start a case's bar."""
        for finished in self.bar.task_ids:
            self.bar.remove_task(finished)
        task = self.bar.add_task(case.name, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def on_done(self, case: PredictionCase, result: CaseResult) -> None:
        """Print a case's line."""
        seconds = ", ".join(f"{name} {value:.2f}" for name, value in result.seconds.items())
        total = sum(result.seconds.values())
        skipped = f", {result.num_windows_skipped} empty skipped" if result.num_windows_skipped else ""
        windows = f"{result.num_windows} windows{skipped}"
        sys.stdout.write(f"{case.name}: {case.output} ({total:.1f} s: {seconds}; {windows})\n")
        sys.stdout.flush()

    def on_error(self, case: PredictionCase, error: SparsegError) -> None:
        """Print a case's error."""
        from sparseg.cli.output import print_error

        text = str(error)
        print_error(text if str(case.image) in text else f"{case.image}: {text}")
