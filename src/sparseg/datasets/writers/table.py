"""A CSV table that lists cases, files, split and folds."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from sparseg.datasets.writers.files import write_declaration, write_entries, write_readme, write_text
from sparseg.datasets.writers.written import Entry, Header, WrittenCase


def write(root: Path, cases: Iterable[WrittenCase], header: Header) -> None:
    """Write volumes/, cases.csv with one row per case, and sparseg.yaml with the names of labels."""
    several = len(header.channels) > 1
    # The number keeps files apart whose channel names differ only in what a file name cannot hold.
    entries = write_entries(
        root,
        cases,
        header,
        lambda case: [
            f"volumes/{case.name}_image{f'_{channel}' if several else ''}{header.file_ending}"
            for channel in range(len(header.channels))
        ],
        lambda case: f"volumes/{case.name}_label{header.file_ending}",
    )
    images = [f"image_{channel}" for channel in range(len(header.channels))] if several else ["image"]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["case", "subject", "split", "fold", *images, "label"])
    rows.writerows(_row(entry) for entry in entries)
    write_text(root / "cases.csv", text.getvalue())
    write_declaration(root, header)
    write_readme(root, header)


def _row(entry: Entry) -> list[str]:
    split = "train" if entry.split == "training" else "test"
    fold = "" if entry.fold is None else str(entry.fold)
    return [entry.name, entry.subject, split, fold, *entry.images, entry.label or ""]
