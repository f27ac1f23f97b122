"""MONAI datalist: `datalist.json` with lists of image and label paths, and folds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparseg.datasets.writers.files import write_declaration, write_entries, write_json, write_readme
from sparseg.datasets.writers.written import Entry, Header, WrittenCase


def write(root: Path, cases: Iterable[WrittenCase], header: Header) -> None:
    """Write images/, labels/, datalist.json, and sparseg.yaml for regions."""
    ending, several = header.file_ending, len(header.channels) > 1
    entries = write_entries(
        root,
        cases,
        header,
        lambda case: [
            f"images/{case.name}_{channel:04d}{ending}" if several else f"images/{case.name}{ending}"
            for channel in range(len(header.channels))
        ],
        lambda case: f"labels/{case.name}{ending}",
    )
    prefix = f"{header.target.absolute().as_posix()}/" if header.absolute else ""
    content: dict[str, Any] = {
        "name": header.name,
        "description": header.description,
        "modality": {str(i): name for i, name in enumerate(header.channels)},
        "labels": {str(i): name for i, name in header.labels.items()},
        "training": [_item(entry, prefix) for entry in entries if entry.split == "training"],
        "testing": [_item(entry, prefix) for entry in entries if entry.split == "test"],
    }
    write_json(root / "datalist.json", content)
    if header.regions:
        write_declaration(root, header)
    write_readme(root, header)


def _item(entry: Entry, prefix: str) -> dict[str, Any]:
    paths = [prefix + path for path in entry.images]
    return {
        "image": paths[0] if len(paths) == 1 else paths,
        **({} if entry.label is None else {"label": prefix + entry.label}),
        **({} if entry.fold is None else {"fold": entry.fold}),
    }
