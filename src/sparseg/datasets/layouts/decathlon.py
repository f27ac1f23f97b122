"""Medical Segmentation Decathlon: a `dataset.json` that lists its cases (label styles of nnU-Net too)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseg.datasets.dataset import Case, Dataset, some
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.label_table import parse_labels
from sparseg.errors import DatasetError
from sparseg.volumes.io import case_name

NAME = "Medical Segmentation Decathlon"


def recognise(root: Path) -> bool:
    """A folder whose dataset.json lists training cases."""
    file = root / "dataset.json"
    return file.is_file() and "training" in _read_json(file)


def read(root: Path, declaration: Declaration) -> Dataset:
    """List the cases of `dataset.json`; paths in it are relative to the folder and stay inside it.

    Raises:
        DatasetError: invalid json, a missing or malformed key, a path that leaves the folder, a training case
            without label.
    """
    file = root / "dataset.json"
    content = _read_json(file)
    labels, regions = parse_labels(_get(content, "labels", dict, file), content.get("regions"), where=file)
    training = tuple(_case(root, entry, "training", file) for entry in _get(content, "training", list, file))
    test = tuple(_case(root, entry, "test", file) for entry in content.get("test") or [])
    unlabelled = [case.name for case in training if case.label is None]
    if unlabelled:
        raise DatasetError(
            "every training case must have a label",
            received=some(unlabelled),
            where=file,
            remedy="list these cases under test, or add labels",
        )
    return Dataset(
        name=declaration.name or str(content.get("name") or root.resolve().name),
        channels=declaration.channels or _channels(content, file),
        labels=declaration.labels or labels,
        training=training,
        test=test,
        root=root,
        regions=declaration.regions if declaration.labels else regions,
        layout=NAME,
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            "a dataset folder must hold dataset.json",
            remedy="give the folder that holds dataset.json, imagesTr and labelsTr",
            where=file.parent,
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(
            "dataset.json must be valid JSON in UTF-8",
            received=str(error),
            where=file,
            remedy="correct the file",
        ) from None
    if not isinstance(content, dict):
        raise DatasetError(
            "dataset.json must hold an object",
            received=type(content).__name__,
            where=file,
            remedy="start the file with {",
        )
    return content


def _get(content: Mapping[str, Any], key: str, kind: type, file: Path) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or not value:
        words = "a filled object" if kind is dict else "a filled list"
        raise DatasetError(
            f"dataset.json must have '{key}', {words}",
            received=repr(value)[:80],
            where=file,
            remedy="see docs/how-to/train.md for the layout",
        )
    return value


def _channels(content: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    key = "channel_names" if "channel_names" in content else "modality"
    names = _get(content, key, dict, file)
    if sorted(names) != sorted(str(i) for i in range(len(names))):
        raise DatasetError(
            f"the keys of '{key}' must count from \"0\"",
            received=sorted(names),
            where=file,
            remedy="number them 0, 1, 2, ...",
        )
    return tuple(str(names[str(i)]) for i in range(len(names)))


def _case(root: Path, entry: Any, key: str, file: Path) -> Case:
    if isinstance(entry, str):
        entry = {"image": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise DatasetError(
            f"an entry of '{key}' must be a path or have 'image'",
            received=repr(entry)[:80],
            where=file,
            remedy='write {"image": PATH, "label": PATH}',
        )
    label = entry.get("label")
    if label is not None and not isinstance(label, str):
        raise DatasetError(
            f"'label' of an entry of '{key}' must be a path",
            received=repr(label)[:80],
            where=file,
            remedy='write {"image": PATH, "label": PATH}',
        )
    image = _inside(root, entry["image"], file)
    return Case(case_name(image), (image,), None if label is None else _inside(root, label, file))


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
