"""nnU-Net raw, version 2 (and 1, whose files are the same): `imagesTr/CASE_0000.nii.gz`, one per channel.

`overwrite_image_reader_writer` is ignored: it names a class of nnU-Net. `regions_class_order` is checked, not
used: regions are painted from the largest to the smallest, which is the order that nnU-Net's users have to
give.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.findings import Finding
from sparseg.datasets.label_table import Regions
from sparseg.datasets.layouts import decathlon, description
from sparseg.datasets.layouts.common import Entry, Split, build, image_files, problem, stem, subfolders
from sparseg.errors import DatasetError
from sparseg.volumes.io import SUFFIXES

NAME = "nnU-Net raw"
NEEDS = "a dataset.json with channel_names, labels and file_ending, imagesTr/CASE_0000.nii.gz and labelsTr"

_KEYS = {"file_ending", "channel_names", "labels", "numTraining"}
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_READABLE = re.compile(r"|".join(re.escape(suffix) for suffix in SUFFIXES), re.IGNORECASE)


def recognise(path: Path) -> bool:
    """A folder whose dataset.json describes channels and labels but leaves the cases to the folders."""
    file = description.dataset_json(path)
    if file is None:
        return False
    content = description.read_json(file)
    if not isinstance(content, dict):
        return False
    if "training" in content:
        return decathlon.listed_by_case(content, file.parent)
    return bool(_KEYS & content.keys())


def read(path: Path, declaration: Declaration) -> Dataset:
    """List the cases of imagesTr and labelsTr (and imagesTs, labelsTs), or of the `dataset` mapping.

    Raises:
        DatasetError: a missing folder, a malformed or contradictory description, an `ignore` label, a file
            ending that is not read.
    """
    file = description.dataset_json(path) or path / "dataset.json"
    root = file.parent
    content = description.read_object(file)
    _refuse_ignore_label(content, file)
    labels, regions = description.read_labels_and_regions(content, file)
    _check_class_order(content, regions, file)
    channels = description.read_channels(content, file)
    expected = len(declaration.channels or channels)
    ending = _file_ending(content, root, file)
    problems: list[Finding] = []
    if "dataset" in content:
        entries = _mapped(description.require(content, "dataset", dict, file), root, file)
    else:
        _require_folders(root)
        entries = _from_folders(root, ("imagesTr", "labelsTr"), "training", ending, expected, problems)
    if (root / "imagesTs").is_dir():
        entries += _from_folders(root, ("imagesTs", "labelsTs"), "test", ending, expected, problems)
    return build(
        entries,
        root=root,
        layout=NAME,
        declaration=declaration,
        name=str(content.get("name") or root.resolve().name),
        channels=channels,
        labels=labels,
        regions=regions,
        problems=problems,
    )


def group_channels(images: Iterable[tuple[str, Path]]) -> tuple[dict[str, dict[int, Path]], list[Path]]:
    """Case -> channel number -> file, and the files without a channel number.

    Args:
        images: (name without format suffix, file).
    """
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    others = []
    for name, path in images:
        match = _CHANNEL.fullmatch(name)
        if match:
            cases[match[1]][int(match[2])] = path
        else:
            others.append(path)
    return dict(cases), others


def _from_folders(
    root: Path,
    folders: tuple[str, str],
    split: Split,
    ending: str,
    num_channels: int,
    problems: list[Finding],
) -> list[Entry]:
    """Entries of an image and a label folder; files that fit nowhere are added to `problems`."""
    images, labels = (
        {path.name[: -len(ending)]: path for path in image_files(root / name, (ending.lower(),))}
        if (root / name).is_dir()
        else {}
        for name in folders
    )
    cases, unnumbered = group_channels(images.items())
    problems += _of_other_ending(root, folders, ending, cases.keys() | labels.keys())
    for path in unnumbered:
        message = f"image names must end in a channel number, such as CASE_0000{ending}"
        problems.append(problem("file-name", message, "rename the file", file=path, root=root))
    entries = []
    for name in sorted(cases.keys() | labels.keys()):
        found = cases.get(name, {})
        extra = [path for number, path in found.items() if number >= num_channels]
        if extra:
            message = f"channel numbers must be below {num_channels}, the number of channel_names"
            remedy = "remove the file, or name the channel in dataset.json"
            problems.append(problem("modality-unknown", message, remedy, file=extra[0], root=root, case=name))
            continue
        files = tuple(found.get(number) for number in range(num_channels))
        entries.append(Entry(files, labels.get(name), name=name, split=split))
    return entries


def _of_other_ending(
    root: Path, folders: tuple[str, str], ending: str, names: Collection[str]
) -> Iterator[Finding]:
    """One problem for every case that has files of another ending only."""
    seen = set(names)
    for folder in (root / name for name in folders):
        for path in image_files(folder) if folder.is_dir() else ():
            match = _CHANNEL.fullmatch(stem(path)) if folder.name == folders[0] else None
            name = match[1] if match else stem(path)
            if not path.name.lower().endswith(ending.lower()) and name not in seen:
                seen.add(name)
                message = f"all volumes must end in {ending}, the file_ending; received {path.name}"
                remedy = "convert the files of the case, or correct file_ending in dataset.json"
                yield problem("file-name", message, remedy, file=path, root=root, case=name)


def _mapped(mapping: Mapping[str, Any], root: Path, file: Path) -> list[Entry]:
    """Entries of `dataset`: case -> {"images": [...], "label": ...}; paths may lie outside the folder."""
    entries = []
    for name, item in mapping.items():
        images = item.get("images") if isinstance(item, dict) else None
        label = item.get("label") if isinstance(item, dict) else None
        fits = isinstance(images, list) and images and all(isinstance(image, str) for image in images)
        if not fits or not isinstance(label, str):
            raise DatasetError(
                "an entry of 'dataset' must have 'images' and 'label'",
                received=f"{name}: {item!r}"[:120],
                remedy='write {"images": [PATH, ...], "label": PATH}',
                where=file,
            )
        entries.append(Entry(tuple(root / image for image in images or ()), root / label, name=name))
    return entries


def _require_folders(root: Path) -> None:
    missing = [name for name in ("imagesTr", "labelsTr") if not (root / name).is_dir()]
    if missing:
        there = ", ".join(folder.name for folder in subfolders(root)[:8]) or "nothing"
        raise DatasetError(
            "an nnU-Net dataset must have the folders imagesTr and labelsTr",
            received=f"no {' and no '.join(missing)} beside {there}",
            remedy="add the folder, or list the cases under 'training' or 'dataset' in dataset.json",
            where=root,
            code="folder-missing",
        )


def _refuse_ignore_label(content: Mapping[str, Any], file: Path) -> None:
    labels = content.get("labels")
    if isinstance(labels, dict) and "ignore" in labels:
        raise DatasetError(
            "an 'ignore' label (voxels left out of the loss) is not supported",
            received=f"ignore: {labels['ignore']}",
            remedy="annotate these voxels, or train on the fully annotated cases only",
            where=file,
            code="ignore-label",
        )


def _check_class_order(content: Mapping[str, Any], regions: Regions, file: Path) -> None:
    """Each id must belong to its region, or it describes other regions than `labels` does."""
    order = content.get("regions_class_order")
    if order is None or not regions:
        return
    if (
        not isinstance(order, list)
        or len(order) != len(regions)
        or any(label_id not in ids for label_id, ids in zip(order, regions.values(), strict=True))
    ):
        raise DatasetError(
            "regions_class_order must hold one id of each region, in the order of labels",
            received=repr(order)[:80],
            remedy=f"write one id for each of {', '.join(regions)}, or remove the key",
            where=file,
            code="region-order",
        )


def _file_ending(content: Mapping[str, Any], root: Path, file: Path) -> str:
    """The declared ending; for version 1, which has none, that of the first image."""
    ending = content.get("file_ending")
    if ending is None:
        first = image_files(root / "imagesTr")[:1] if (root / "imagesTr").is_dir() else []
        ending = next((s for path in first for s in SUFFIXES if path.name.lower().endswith(s)), ".nii.gz")
    if not isinstance(ending, str) or not _READABLE.fullmatch(ending):
        raise DatasetError(
            f"file_ending must be one of {', '.join(SUFFIXES)}",
            received=repr(ending)[:40],
            remedy="convert the images to .nii.gz and correct file_ending",
            where=file,
            code="file-ending",
        )
    return ending
