"""`sparseg sample`: real sample data, and the standing tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import cyclopts

app = cyclopts.App(name="sample", help="Get real sample data, and the standing tasks.")


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
    from sparseg.datasets.sample import fetch_sample

    _describe(fetch_sample(name, to))
    return 0


@app.command
def task(
    name: Literal["ct", "brain", "small"], /, *, to: Annotated[Path, cyclopts.Parameter(name="--to")]
) -> int:
    """Write the dataset of a standing task; recipes/tasks has the settings to train with.

    Parameters
    ----------
    name
        ct: 12 organs, one patient to train on, another to test on (silver labels). brain: 8 groups of
            structures, synthetic heads to train on, a real T1 to test on (research only). small: synthetic
            structures of 2 to 6 voxels in texture.
    to
        Folder to write.
    """
    from sparseg.cli.output import progress_bar
    from sparseg.datasets.sample_tasks import make_task, num_cases

    with progress_bar() as bar:
        progress = bar.add_task("making cases", total=num_cases(name))
        folder = make_task(name, to, on_case=lambda _: bar.advance(progress))
    _describe(folder)
    return 0


def _describe(folder: Path) -> None:
    from sparseg.cli.output import print_pairs
    from sparseg.datasets.dataset import some
    from sparseg.datasets.read import read_dataset

    dataset = read_dataset(folder)
    print_pairs(
        {
            "dataset": folder,
            "training": some([case.name for case in dataset.training]),
            "test": some([case.name for case in dataset.test]),
            "labels": f"{len(dataset.labels) - 1} structures",
            "provenance": (folder / "README.txt").read_text(encoding="utf-8").strip(),
        }
    )
