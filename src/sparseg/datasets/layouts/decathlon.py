"""Medical Segmentation Decathlon: a `dataset.json` that lists its cases (label styles of nnU-Net too)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.layouts import description
from sparseg.datasets.layouts.common import build, stem
from sparseg.errors import DatasetError

NAME = "Medical Segmentation Decathlon"
NEEDS = "a dataset.json with channel_names, labels and training"


def recognise(path: Path) -> bool:
    """A folder whose dataset.json lists training cases."""
    file = description.dataset_json(path)
    if file is None:
        return False
    content = description.read_json(file)
    return isinstance(content, dict) and "training" in content and not listed_by_case(content, file.parent)


def listed_by_case(content: dict[str, Any], root: Path) -> bool:
    """Whether the list names cases whose files carry channel numbers (nnU-Net version 1, and some of 2)."""
    items = content["training"]
    first = items[0] if isinstance(items, list) and items else None
    image = first.get("image") if isinstance(first, dict) else None
    if not isinstance(image, str) or (root / image).exists():
        return False
    name = Path(image).name
    return (root / image).with_name(f"{stem(name)}_0000{name[len(stem(name)) :]}").exists()


def read(path: Path, declaration: Declaration) -> Dataset:
    """List the cases of `dataset.json`; paths in it are relative to the folder and stay inside it.

    Raises:
        DatasetError: invalid json, a missing or malformed key, a path that leaves the folder.
    """
    file = description.dataset_json(path) or path / "dataset.json"
    root = file.parent
    content = description.read_object(file)
    description.require(content, "training", list, file)
    labels, regions = description.read_labels_and_regions(content, file)
    entries = description.read_sections(content, lambda text: _inside(root, text, file), file)
    return build(
        # Names as the files are named: two files of one name are refused, not renamed.
        [replace(entry, name=entry.name or stem(entry.files[0])) for entry in entries],
        root=root,
        layout=NAME,
        declaration=declaration,
        name=str(content.get("name") or root.resolve().name),
        channels=description.read_channels(content, file),
        labels=labels,
        regions=regions,
    )


def _inside(root: Path, text: str, file: Path) -> Path:
    # By the text alone, not by resolving: a folder of images linked in from another disk is a user's own
    # choice.
    relative = Path(os.path.normpath(text.replace("\\", "/")))
    if relative.is_absolute() or not relative.parts or relative.parts[0] == "..":
        raise DatasetError(
            "paths must stay inside the dataset folder",
            received=text,
            where=file,
            remedy="move the files into the folder and write relative paths",
        )
    return root / relative
