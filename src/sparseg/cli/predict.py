"""`sparseg predict`: segment image files or DICOM series."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cyclopts

from sparseg.cli.batch_options import BatchOptions, current_rank, ending_cleanly
from sparseg.cli.budget_options import BudgetOptions
from sparseg.cli.predict_options import LabelOptions, ReadingOptions, WindowOptions
from sparseg.cli.speed_options import SpeedOptions


def predict(
    *inputs: Annotated[Path, cyclopts.Parameter(required=True)],
    model: Annotated[tuple[Path, ...], cyclopts.Parameter(negative="")],
    out: Path,
    report: bool = True,
    windows: WindowOptions | None = None,
    reading: ReadingOptions | None = None,
    labels: LabelOptions | None = None,
    speed: SpeedOptions | None = None,
    batch: BatchOptions | None = None,
    budget: BudgetOptions | None = None,
) -> int:
    """Segment images into label files on their own grids.

    Writes a label file per case, statistics.json, report.json and report.html. Exit code 0: all done; 1: some
    cases failed, the others are complete; 2: bad input, nothing written for it; 130 or 143: interrupted or
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
        Write report.html: one page, to be opened without network or server, that shows labels, tokens and
        confidence in pictures and in a viewer, and where the time went. Keeps small copies of the images in
        the folder report; --no-report keeps and writes neither.
    """
    budget, batch = budget or BudgetOptions(), batch or BatchOptions()
    rank = current_rank()
    batch.check(rank)
    budget = batch.limited(budget)
    budget.apply_threads()
    from sparseg.cli.output import progress_bar
    from sparseg.cli.predict_progress import Watcher
    from sparseg.errors import InputError
    from sparseg.predict.batch import predict_cases
    from sparseg.predict.ensemble import load_predictor
    from sparseg.predict.inputs import collect_cases
    from sparseg.predict.label_files import SUFFIX_OF
    from sparseg.predict.shards import wait_for_ranks

    windows, labels = windows or WindowOptions(), labels or LabelOptions()
    windows.check()
    files, cleanup = labels.files(), labels.cleanup()
    cases = collect_cases(inputs, out, suffix=SUFFIX_OF[labels.format])
    shard = batch.part(rank)
    mine = shard.of(cases) if shard else cases
    settings = batch.settings(windows, rank, (reading or ReadingOptions()).reading(), files, cleanup)
    settings = (speed or SpeedOptions()).applied(replace(settings, previews=report))
    with progress_bar(visible=rank is None) as bar, ending_cleanly():
        if batch.ray is not None:
            errors = batch.run_fleet(model, settings, cases, out, Watcher(bar, len(cases)), budget)
        else:
            predictor = load_predictor(model, settings)
            budget.prepare(predictor, mine, out)
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
    """Write the page of a run; one image that failed alone leaves no report to show.

    The labels are complete: what is wrong with the page is a warning.
    """
    from sparseg.errors import SparsegError
    from sparseg.viewer.report_data import REPORT
    from sparseg.viewer.report_page import write_report_page

    if not (out / REPORT).is_file():
        return
    try:
        sys.stdout.write(f"report: {write_report_page(out)}\n")
    except (SparsegError, OSError) as error:
        sys.stderr.write(f"warning: no report.html: {error}\n")
