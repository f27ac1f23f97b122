"""A dataset on disk as its `dataset.json` describes it (Medical Segmentation Decathlon.

NnU-Net label style too).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparseg.datasets.label_table import parse_labels
from sparseg.errors import DatasetError
from sparseg.volumes.io import case_name


@dataclass(frozen=True)
class Case:
    """One image and, if there is one, its label map.

    Attributes:
        name: Unique in the dataset; names the outputs.
        image: NIfTI file, or folder with one DICOM series.
        label: NIfTI file of ids, or None.
    """

    name: str
    image: Path
    label: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """What a dataset folder holds.

    Attributes:
        name: Title.
        channels: Name of each image channel, in order, such as ("CT",).
        labels: Id -> name; 0 is the background.
        regions: Name -> ids of overlapping regions, in output order; empty for plain classes.
        training: Cases with labels.
        test: Other cases, with or without labels.
        root: The folder.
    """

    name: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    root: Path
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Channels of the model's output: classes with the background, or regions."""
        return len(self.regions) or len(self.labels)


def read_dataset(folder: Path | str) -> Dataset:
    """Read `dataset.json` and check that everything it lists is there.

    Args:
        folder: Holds `dataset.json`; paths in it are relative to this folder and stay inside it.

    Raises:
        DatasetError: no or invalid json, a missing or malformed key, missing files, two cases of one name, a
            path that leaves the folder.
    """
    root = Path(folder)
    file = root / "dataset.json"
    content = _read_json(file)
    labels, regions = parse_labels(_get(content, "labels", dict, file), content.get("regions"), where=file)
    training = tuple(_case(root, entry, "training", file) for entry in _get(content, "training", list, file))
    test = tuple(_case(root, entry, "test", file) for entry in content.get("test") or [])
    unlabelled = [case.name for case in training if case.label is None]
    if unlabelled:
        raise DatasetError(
            "every training case must have a label",
            received=_some(unlabelled),
            where=file,
            remedy="list these cases under test, or add labels",
        )
    _require_distinct_names(training + test, file)
    _require_files(training + test, file)
    return Dataset(
        name=str(content.get("name") or root.resolve().name),
        channels=_channels(content, file),
        labels=labels,
        regions=regions,
        training=training,
        test=test,
        root=root,
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
    return Case(case_name(image), image, None if label is None else _inside(root, label, file))


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


def _require_distinct_names(cases: tuple[Case, ...], file: Path) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        # Outputs are named after cases; some file systems do not tell capitals apart.
        other = seen.setdefault(case.name.casefold(), case)
        if other is not case:
            raise DatasetError(
                "every case must have a name of its own, in training and test together",
                received=f"'{case.name}' from {other.image} and {case.image}",
                remedy="rename one of the files, or remove the double entry",
                where=file,
            )


def _require_files(cases: tuple[Case, ...], file: Path) -> None:
    paths = [path for case in cases for path in (case.image, case.label) if path is not None]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DatasetError(
            "every file listed must exist",
            received=f"{len(missing)} of {len(paths)} missing: {_some(missing)}",
            remedy="complete the dataset or remove the entries",
            where=file,
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
