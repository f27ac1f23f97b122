"""Two plain folders, `images` and `labels`, matched by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sparseg.datasets.writers.files import write_declaration, write_entries, write_readme
from sparseg.datasets.writers.written import Header, WrittenCase


def write(root: Path, cases: Iterable[WrittenCase], header: Header) -> None:
    """Write images/ and labels/ (imagesTs/ and labelsTs/ for test cases), and sparseg.yaml with the names."""
    ending, several = header.file_ending, len(header.channels) > 1
    write_entries(
        root,
        cases,
        header,
        lambda case: [
            f"images{_side(case)}/{case.name}" + (f"_{channel:04d}{ending}" if several else ending)
            for channel in range(len(header.channels))
        ],
        lambda case: f"labels{_side(case)}/{case.name}{ending}",
    )
    write_declaration(root, header)
    write_readme(root, header)


def _side(case: WrittenCase) -> str:
    return "" if case.split == "training" else "Ts"
