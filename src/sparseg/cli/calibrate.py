"""`sparseg calibrate`: measure a model's own quality/time curve and store it in the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import cyclopts


def calibrate(
    run: Path,
    dataset: Path,
    /,
    *,
    keep_ratios: Annotated[tuple[float, ...], cyclopts.Parameter(negative="", consume_multiple=True)] = (
        0.1,
        0.25,
        0.5,
        0.7,
        1.0,
    ),
    max_cases: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int | None = None,
) -> int:
    """Measure Dice and time at several keep ratios, for `sparseg predict --deadline`.

    Cases are the run's own validation cases where the dataset is the one it was trained on, else the
    dataset's test cases with labels, else all with labels. Writes calibration.json and calibration.png beside
    model.json. Measure on a quiet machine of the kind you will predict on.

    Parameters
    ----------
    run
        Model folder, training run, or cross-validation (each fold by its own cases).
    dataset
        Dataset with labels, in any layout.
    keep_ratios
        Shares of the tokens that stay at every pruning stage; the model's own setting is always measured.
    max_cases
        Use the first so many cases only.
    device
        Where the network runs; auto takes a GPU if there is one.
    threads
        CPU threads of the network; default all.
    """
    from sparseg.benchmark.calibrate import calibrate_folder
    from sparseg.cli.output import print_table
    from sparseg.cli.settings import choose_device
    from sparseg.predict.calibration import FILE, PICTURE, curve_table, findings
    from sparseg.predict.ensemble import find_models

    where = choose_device(device)
    for folder in find_models(run):
        found = calibrate_folder(
            folder,
            dataset,
            keep_ratios=keep_ratios,
            max_cases=max_cases,
            device=where,
            threads=threads,
            on_step=_say,
        )
        header, *rows = curve_table(found)
        machine = f"{found.machine.device}, {found.machine.name}, {found.machine.threads} thread(s)"
        title = f"{found.num_cases} {found.cases} case(s), {machine}"
        print_table(title, [str(name) for name in header], rows)
        around = found.before_seconds_per_mvoxel + found.after_seconds_per_mvoxel
        sys.stdout.write(f"around the network: {around:.3f} s per million voxels of the image\n")
        sys.stdout.writelines(f"note: {text}\n" for text in findings(found))
        sys.stdout.write(f"{folder / FILE}\n{folder / PICTURE}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
