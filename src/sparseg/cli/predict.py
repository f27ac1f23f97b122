"""`sparseg predict`: segment image files or DICOM series."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cyclopts

from sparseg.cli.batch_options import BatchOptions, current_rank, device_of_rank, ending_cleanly
from sparseg.cli.budget_options import BudgetOptions
from sparseg.cli.predict_options import LabelOptions, ReadingOptions, WindowOptions
from sparseg.cli.speed_options import SpeedOptions


def predict(
    *inputs: Annotated[Path, cyclopts.Parameter(required=True)],
    model: Annotated[tuple[Path, ...], cyclopts.Parameter(negative="")],
    out: Path,
    report: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    windows: WindowOptions | None = None,
    reading: ReadingOptions | None = None,
    labels: LabelOptions | None = None,
    speed: SpeedOptions | None = None,
    batch: BatchOptions | None = None,
    budget: BudgetOptions | None = None,
) -> int:
    """Segment images into label files on their own grids.

    Writes a label file per case, statistics.json and report.json. Exit code 0: all done; 1: some cases
    failed, the others are complete; 2: bad input, nothing written for it; 130 or 143: interrupted or
    terminated, and --resume goes on.

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
    report
        Write report.html, too: one page, to be opened without network or server, that shows labels, tokens
        and confidence in pictures and in a viewer, and where the time went. Keeps small copies of the images.
    """
    budget = budget or BudgetOptions()
    budget.apply_threads()
    from sparseg.cli.output import progress_bar
    from sparseg.cli.predict_progress import Watcher
    from sparseg.errors import InputError
    from sparseg.predict.batch import predict_cases
    from sparseg.predict.ensemble import load_predictor
    from sparseg.predict.inputs import collect_cases
    from sparseg.predict.label_files import SUFFIX_OF
    from sparseg.predict.shards import wait_for_ranks

    windows, labels, batch = windows or WindowOptions(), labels or LabelOptions(), batch or BatchOptions()
    windows.check()
    files, cleanup = labels.files(), labels.cleanup()
    cases = collect_cases(inputs, out, suffix=SUFFIX_OF[labels.format])
    rank = current_rank()
    shard = batch.part(rank)
    mine = shard.of(cases) if shard else cases
    settings = windows.settings((reading or ReadingOptions()).reading(), files, cleanup)
    settings = replace(settings, device=device_of_rank(rank, settings.device), previews=report)
    predictor = load_predictor(model, (speed or SpeedOptions()).applied(settings))
    budget.prepare(predictor, mine, out)
    with progress_bar(visible=rank is None) as bar, ending_cleanly():
        watcher = Watcher(bar, len(mine))
        errors = predict_cases(predictor, cases, out, watcher, resume=batch.resume, shard=shard)
        if rank is not None:
            wait_for_ranks(rank)
    if report and (rank is None or rank.number == 0):
        _write_page(out)
    if not errors:
        return 0
    return 2 if len(errors) == len(mine) and all(isinstance(error, InputError) for error in errors) else 1


def _write_page(out: Path) -> None:
    """Write the page of a run; one image that failed alone leaves no report to show."""
    from sparseg.viewer.report_data import REPORT
    from sparseg.viewer.report_page import write_report_page

    if (out / REPORT).is_file():
        sys.stdout.write(f"report: {write_report_page(out)}\n")
