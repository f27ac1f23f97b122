"""nnU-Net v2 raw: one file per channel (`CASE_0000.nii.gz`), names first in `dataset.json`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparseg.datasets.writers.files import write_declaration, write_entries, write_json, write_readme
from sparseg.datasets.writers.written import Header, WrittenCase


def write(root: Path, cases: Iterable[WrittenCase], header: Header) -> None:
    """Write imagesTr, labelsTr, imagesTs, labelsTs and dataset.json.

    With regions dataset.json holds those instead of the plain classes, as nnU-Net wants it; `sparseg.yaml`
    keeps the names of the classes.
    """
    ending = header.file_ending
    entries = write_entries(
        root,
        cases,
        header,
        lambda case: [
            f"images{_side(case)}/{case.name}_{channel:04d}{ending}"
            for channel in range(len(header.channels))
        ],
        lambda case: f"labels{_side(case)}/{case.name}{ending}",
    )
    content: dict[str, Any] = {
        "name": header.name,
        "description": header.description,
        "channel_names": {str(i): name for i, name in enumerate(header.channels)},
        "labels": {name: label_id for label_id, name in header.labels.items()},
        "numTraining": sum(entry.split == "training" for entry in entries),
        "file_ending": ending,
    }
    if header.regions:
        content["labels"] = {header.labels[0]: 0, **{name: list(ids) for name, ids in header.regions.items()}}
        content["regions_class_order"] = _paint_order(header)
        write_declaration(root, header)
    write_json(root / "dataset.json", content)
    write_readme(root, header)


def _side(case: WrittenCase) -> str:
    return "Tr" if case.split == "training" else "Ts"


def _paint_order(header: Header) -> list[int]:
    """Id that each region paints, larger regions first: one that no later, smaller region holds."""
    regions = [set(ids) for ids in header.regions.values()]
    return [min(ids - set().union(*(other for other in regions if other < ids)) or ids) for ids in regions]
