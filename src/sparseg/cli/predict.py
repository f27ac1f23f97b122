"""`sparseg predict`: segment image files or DICOM series."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

from sparseg.cli.predict_options import LabelOptions, ReadingOptions, WindowOptions
from sparseg.cli.speed_options import SpeedOptions, deadline_warning

if TYPE_CHECKING:
    from rich.progress import Progress

    from sparseg.errors import SparsegError
    from sparseg.predict.case import CaseResult
    from sparseg.predict.inputs import PredictionCase


def predict(
    *inputs: Annotated[Path, cyclopts.Parameter(required=True)],
    model: Annotated[tuple[Path, ...], cyclopts.Parameter(negative="")],
    out: Path,
    windows: WindowOptions | None = None,
    reading: ReadingOptions | None = None,
    labels: LabelOptions | None = None,
    speed: SpeedOptions | None = None,
) -> int:
    """Segment images into label files on their own grids.

    Writes a label file per case, statistics.json and report.json. Exit code 0: all done; 1: some cases
    failed, the others are complete; 2: bad input, nothing written for it.

    Parameters
    ----------
    inputs
        Image files, DICOM series folders, .zip files of one series, folders that hold files and series, or
        datasets (their test cases; all cases where there are none).
    model
        Model folder, training run, or cross-validation (all its folds); given several times, or with several
        folds, the mean of the models' probabilities decides.
    out
        Folder for the label files.
    """
    from sparseg.cli.output import progress_bar
    from sparseg.errors import InputError
    from sparseg.predict.batch import predict_cases
    from sparseg.predict.ensemble import load_predictor
    from sparseg.predict.inputs import collect_cases
    from sparseg.predict.label_files import SUFFIX_OF

    windows, labels = windows or WindowOptions(), labels or LabelOptions()
    windows.check()
    files, cleanup = labels.files(), labels.cleanup()
    cases = collect_cases(inputs, out, suffix=SUFFIX_OF[labels.format])
    settings = windows.settings((reading or ReadingOptions()).reading(), files, cleanup)
    predictor = load_predictor(model, (speed or SpeedOptions()).applied(settings))
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
        from sparseg.predict.case import WINDOW_PARTS

        steps = {name: value for name, value in result.seconds.items() if name not in WINDOW_PARTS}
        seconds = ", ".join(f"{name} {value:.2f}" for name, value in steps.items())
        skipped = f", {result.num_windows_skipped} empty skipped" if result.num_windows_skipped else ""
        windows = f"{result.num_windows} windows{skipped}"
        sys.stdout.write(f"{case.name}: {case.output} ({result.total_seconds:.1f} s: {seconds}; {windows})\n")
        sys.stdout.flush()
        warning = deadline_warning(result)
        if warning is not None:
            sys.stderr.write(f"warning: {case.name}: {warning}\n")

    def on_error(self, case: PredictionCase, error: SparsegError) -> None:
        """Print a case's error."""
        from sparseg.cli.output import print_error

        text = str(error)
        print_error(text if str(case.image) in text else f"{case.image}: {text}")
