"""Medical Segmentation Decathlon: `dataset.json`, channels on a fourth axis."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparseg.datasets.writers.files import write_entries, write_json, write_readme
from sparseg.datasets.writers.written import Entry, Header, WrittenCase


def write(root: Path, cases: Iterable[WrittenCase], header: Header) -> None:
    """Write imagesTr, labelsTr, imagesTs, labelsTs and dataset.json."""
    ending = header.file_ending
    entries = write_entries(
        root,
        cases,
        header,
        lambda case: [f"images{_side(case)}/{case.name}{ending}"],
        lambda case: f"labels{_side(case)}/{case.name}{ending}",
    )
    training = [_pair(entry) for entry in entries if entry.split == "training"]
    test = [_pair(entry) for entry in entries if entry.split == "test"]
    content: dict[str, Any] = {
        "name": header.name,
        "description": header.description,
        "modality": {str(i): name for i, name in enumerate(header.channels)},
        "labels": {str(i): name for i, name in header.labels.items()},
        **({"regions": {name: list(ids) for name, ids in header.regions.items()}} if header.regions else {}),
        "tensorImageSize": "3D" if len(header.channels) == 1 else "4D",
        "numTraining": len(training),
        "numTest": len(test),
        "training": training,
        "test": test,
    }
    write_json(root / "dataset.json", content)
    write_readme(root, header)


def _side(case: WrittenCase) -> str:
    return "Tr" if case.split == "training" else "Ts"


def _pair(entry: Entry) -> dict[str, str]:
    label = {} if entry.label is None else {"label": f"./{entry.label}"}
    return {"image": f"./{entry.images[0]}", **label}
