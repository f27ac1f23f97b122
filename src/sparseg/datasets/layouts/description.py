"""JSON descriptions of datasets: reading, required keys, entries of a list of cases."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparseg.datasets.label_table import Regions, parse_labels
from sparseg.datasets.layouts.common import Entry, Split, is_image
from sparseg.errors import DatasetError

# The keys of a list of cases and what they are for; Auto3DSeg writes "testing".
SECTIONS: dict[str, Split] = {
    "training": "training",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_STARTS = {"train": "training", "val": "validation", "test": "test"}
_LABEL_KEY = re.compile(r"(?:^|_)(?:label|seg|mask)", re.IGNORECASE)
Resolve = Callable[[str], Path]


def read_json(file: Path) -> Any:
    """Parse a JSON file.

    Raises:
        DatasetError: not readable, or not JSON in UTF-8.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(
            f"{file.name} must be valid JSON in UTF-8",
            received=str(error) or type(error).__name__,
            where=file,
            remedy="correct the file",
            code="json-invalid",
        ) from None


def read_object(file: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object.

    Raises:
        DatasetError: not readable, not JSON, or a list or value.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise DatasetError(
            f"{file.name} must hold an object",
            received=type(content).__name__,
            where=file,
            remedy="start the file with {",
        )
    return content


def dataset_json(path: Path) -> Path | None:
    """The `dataset.json` of a folder, or the path itself if that is one; None without."""
    file = path if path.name == "dataset.json" else path / "dataset.json"
    return file if file.is_file() else None


def require(content: Mapping[str, Any], key: str, kind: type, file: Path) -> Any:
    """The value of a key that must be there and filled.

    Raises:
        DatasetError: missing, empty or of another kind.
    """
    value = content.get(key)
    if not isinstance(value, kind) or not value:
        words = "a filled object" if kind is dict else "a filled list"
        raise DatasetError(
            f"{file.name} must have '{key}', {words}",
            received=repr(value)[:80],
            where=file,
            remedy="see docs/how-to/datasets.md for the layout",
        )
    return value


def read_channels(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """Channel names of `channel_names` or `modality`, in order.

    Raises:
        DatasetError: missing, empty, or keys that do not count from "0".
    """
    key = "channel_names" if "channel_names" in content else "modality"
    names = require(content, key, dict, file)
    if sorted(names) != sorted(str(i) for i in range(len(names))):
        raise DatasetError(
            f"the keys of '{key}' must count from \"0\"",
            received=sorted(names),
            where=file,
            remedy="number them 0, 1, 2, ...",
        )
    return tuple(str(names[str(i)]) for i in range(len(names)))


def read_labels_and_regions(content: Mapping[str, Any], file: Path) -> tuple[dict[int, str], Regions]:
    """The `labels` and `regions` of a description.

    Raises:
        DatasetError: missing or contradictory.
    """
    regions = content.get("regions")
    if regions is not None and not isinstance(regions, dict):
        raise DatasetError(
            "'regions' must map names to lists of ids",
            received=repr(regions)[:80],
            where=file,
            remedy='write {"whole tumour": [1, 2], "core": [2]}',
        )
    return parse_labels(require(content, "labels", dict, file), regions, where=file)


def read_sections(content: Mapping[str, Any], resolve: Resolve, file: Path) -> list[Entry]:
    """Entries of all lists of cases: training, validation, test, in this order.

    Args:
        content: Key -> list of paths or of `{"image": path or paths, "label": path, "fold": k}`.
        resolve: Turns a path as written into a path.
        file: For messages.

    Raises:
        DatasetError: a list or entry of another form; a list of images under another key; a fold beside a
            validation list.
    """
    _refuse_other_lists(content, file)
    entries: list[Entry] = []
    for key, split in SECTIONS.items():
        items = content.get(key) or []
        if not isinstance(items, list):
            raise DatasetError(
                f"'{key}' must be a list",
                received=repr(items)[:80],
                where=file,
                remedy='write [{"image": PATH, "label": PATH}, ...]',
            )
        entries += [replace(read_entry(item, key, resolve, file), split=split) for item in items]
    require_one_split(entries, file)
    return entries


def names_image(item: Any) -> bool:
    """Whether an item of a list is the path of a volume, or an object with `image`."""
    return is_image(Path(item).name) if isinstance(item, str) else isinstance(item, dict) and "image" in item


def _refuse_other_lists(content: Mapping[str, Any], file: Path) -> None:
    """Refuse cases under a key that would not be read, such as `val`; lists of label files are no cases."""
    for key, items in content.items():
        if key in SECTIONS or not isinstance(items, list) or not any(map(names_image, items)):
            continue
        if _LABEL_KEY.search(key) and all(isinstance(item, str) for item in items):
            continue
        meant = next((name for start, name in _STARTS.items() if key.lower().startswith(start)), "")
        raise DatasetError(
            f"lists of cases must be called {', '.join(SECTIONS)}",
            received=repr(key)[:80],
            where=file,
            remedy=f"call it {meant or 'what its cases are for'}, or remove it",
            code="split-unknown",
        )


def read_entry(item: Any, key: str, resolve: Resolve, file: Path) -> Entry:
    """One entry of a list of cases: a path, or an object with `image` and perhaps `label`, `fold`, `case`.

    Raises:
        DatasetError: of another form.
    """
    if isinstance(item, str):
        item = {"image": item}
    images = item.get("image") if isinstance(item, dict) else None
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(i, str) and i for i in images):
        raise DatasetError(
            f"an entry of '{key}' must be a path or have 'image'",
            received=repr(item)[:80],
            where=file,
            remedy='write {"image": PATH, "label": PATH}',
        )
    label = item.get("label")
    if label is not None and (not isinstance(label, str) or not label):
        raise DatasetError(
            f"'label' of an entry of '{key}' must be a path",
            received=repr(label)[:80],
            where=file,
            remedy='write {"image": PATH, "label": PATH}',
        )
    return Entry(
        images=tuple(resolve(image) for image in images),
        label=None if label is None else resolve(label),
        name=str(item.get("case") or ""),
        subject=str(item.get("subject") or ""),
        fold=read_fold(item.get("fold"), file),
    )


def read_fold(value: Any, file: Path) -> int | None:
    """A fold number, None for none.

    Raises:
        DatasetError: not a whole number from 0.
    """
    if value is None or value == "":
        return None
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()):
        raise DatasetError(
            "a fold must be a whole number from 0",
            received=repr(value),
            where=file,
            remedy="number the folds 0, 1, 2, ... or leave them out",
            code="fold-invalid",
        )
    return int(text)


def require_one_split(entries: list[Entry], file: Path) -> None:
    """Refuse a list that says twice, perhaps differently, which cases validate.

    Raises:
        DatasetError: folds beside validation cases.
    """
    if any(e.split == "validation" for e in entries) and any(e.fold is not None for e in entries):
        raise DatasetError(
            "a list must say with folds or with validation cases what validates, not with both",
            received="fold and validation",
            where=file,
            remedy="remove one of them",
            code="fold-conflict",
        )
