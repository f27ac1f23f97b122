"""`sparseg evaluate`: compare a folder of predictions with a folder of references."""

from __future__ import annotations

import sys
from pathlib import Path


def evaluate(
    *, pred: Path, ref: Path, out: Path | None = None, labels: Path | None = None, tolerance_mm: float = 2.0
) -> int:
    """Dice, HD95 (mm) and NSD per class and case. Grids are compared first; a mismatch is an error.

    A structure absent from both is not defined (left out of the mean, and counted as 1 in "Dice with empty");
    one that is predicted but absent from the reference, or missed, has Dice 0 and no HD95.

    Parameters
    ----------
    pred
        Folder of predicted label files, named as the references.
    ref
        Folder of reference label files.
    out
        JSON file for the result.
    labels
        Dataset or model folder that names the labels; without it ids stand for names.
    tolerance_mm
        Distance within which NSD counts a surface as right.
    """
    from sparseg.cli.output import print_table
    from sparseg.evaluation.folders import evaluate_folders, summary_table

    names = _names(labels) if labels is not None else None
    result = evaluate_folders(pred, ref, labels=names, out=out, tolerance_mm=tolerance_mm)
    header, *rows = summary_table(result)
    print_table(f"{result['num_cases']} case(s), NSD at {tolerance_mm:g} mm", header, rows)
    if out is not None:
        sys.stdout.write(f"{out}\n")
    return 0


def _names(folder: Path) -> dict[int, str] | None:
    if any((folder / name).is_file() for name in ("model.json", "best/model.json", "last/model.json")):
        from sparseg.checkpoints.folder import read_card

        return read_card(folder).labels
    from sparseg.datasets.read import read_dataset

    return read_dataset(folder).labels or None
