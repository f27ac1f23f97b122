"""MONAI datalist: a JSON file that lists cases, `{"training": [{"image": ..., "label": ..., "fold": 0}]}`.

Validation: a case validates in its `fold`. Where there is a `validation` list instead, its cases get fold 0
and those of `training` none, so that they never validate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.layouts import description
from sparseg.datasets.layouts.common import (
    Entry,
    build,
    default_channels,
    distinct_names,
    usual_number,
)
from sparseg.errors import DatasetError

NAME = "MONAI datalist"
NEEDS = 'a .json file with {"training": [{"image": PATH, "label": PATH}]}'


def recognise(path: Path) -> bool:
    """A JSON file with a list of cases, or a folder that holds such a file."""
    if path.is_file():
        return path.suffix.lower() == ".json" and is_list(description.read_json(path))
    return bool(_lists(path))


def is_list(content: Any) -> bool:
    """Whether a JSON content that a user points at lists cases, well or badly."""
    if isinstance(content, dict):
        return any(isinstance(content.get(key), list) for key in description.SECTIONS)
    return isinstance(content, list) and _names_image(content)


def _lists_images(content: Any) -> bool:
    """Whether a JSON content found in a folder lists images, and not names of cases as a split does."""
    if isinstance(content, dict):
        return any(_names_image(content.get(key)) for key in description.SECTIONS)
    return _names_image(content)


def _names_image(items: Any) -> bool:
    return isinstance(items, list) and bool(items) and description.names_image(items[0])


def read(path: Path, declaration: Declaration) -> Dataset:
    """List the cases; paths are absolute, or relative to `root` (`data_root`) or else to the file's folder.

    Raises:
        DatasetError: several lists in the folder, invalid json, a malformed key or entry.
    """
    file = path if path.is_file() else require_one(_lists(path), path)
    content = description.read_json(file)
    if isinstance(content, list):
        content = {"training": content}
    folder = _data_root(content, file)
    entries = _named(description.read_sections(content, lambda text: folder / text, file))
    has_labels = bool(content.get("labels"))
    labels, regions = description.read_labels_and_regions(content, file) if has_labels else ({}, {})
    has_channels = bool(content.get("channel_names") or content.get("modality"))
    return build(
        entries,
        root=file,
        layout=NAME,
        declaration=declaration,
        name=str(content.get("name") or file.stem),
        channels=description.read_channels(content, file)
        if has_channels
        else default_channels(usual_number(entries)),
        labels=labels,
        regions=regions,
    )


def _named(entries: list[Entry]) -> list[Entry]:
    """The entries, each named; a list of images without any label is one of test cases."""
    if not any(entry.label for entry in entries):
        entries = [replace(entry, split="test") for entry in entries]
    names = distinct_names([entry.files[0] for entry in entries])
    return [replace(entry, name=entry.name or name) for entry, name in zip(entries, names, strict=True)]


def require_one(files: list[Path], folder: Path) -> Path:
    """The only list of a folder.

    Raises:
        DatasetError: several, or none.
    """
    if len(files) != 1:
        raise DatasetError(
            "a folder must hold one list of cases",
            received=", ".join(file.name for file in files[:5]) or "none",
            remedy="give the path of the list to use instead of the folder",
            where=folder,
            code="list-ambiguous",
        )
    return files[0]


def _lists(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            listed = _lists_images(description.read_json(file))
        except DatasetError:
            # Some other file that only ends in .json; where it is given by name, the fault is reported.
            continue
        if listed:
            found.append(file)
    return found


def _data_root(content: dict[str, Any], file: Path) -> Path:
    for key in ("root", "data_root"):
        value = content.get(key)
        if value is not None and not isinstance(value, str):
            raise DatasetError(
                f"'{key}' must be a path",
                received=repr(value)[:80],
                remedy="write the folder that the paths are relative to",
                where=file,
            )
        if value:
            return file.parent / value
    return file.parent
