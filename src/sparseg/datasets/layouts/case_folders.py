"""One folder per case: `CASE/CASE_flair.nii.gz` ... `CASE/CASE_seg.nii.gz`, or `CASE/ct.nii.gz` and masks.

A channel is what is left of a file name without the name of its folder (BraTS: flair, t1, t1ce, t2). Labels
are a file with `seg`, `label`, `mask` or `gt` as a word of its name, or the files of a folder
`segmentations`: one mask per structure there, named after it (TotalSegmentator).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.findings import Finding
from sparseg.datasets.layouts.common import (
    Entry,
    build,
    by_name,
    choose_channels,
    found_channels,
    image_files,
    in_label_order,
    mask_labels,
    problem,
    relative,
    stem,
    subfolders,
    volume_below,
)

NAME = "one folder per case"
NEEDS = "CASE/image.nii.gz and CASE/seg.nii.gz (or CASE/segmentations/STRUCTURE.nii.gz) in every folder"

_LABEL = re.compile(r"(?:^|[_.\s-])(?:seg|segmentations?|labels?|masks?|gt)(?=$|[_.\s-])", re.IGNORECASE)
_MASK_FOLDERS = {"segmentation", "segmentations", "masks", "labels", "seg", "segs"}
_MIN_SHARE = 0.5


@dataclass(frozen=True)
class _Folder:
    """Files of one case: channel -> image, label maps, structure -> mask."""

    name: str
    images: dict[str, Path]
    labels: list[Path]
    masks: dict[str, Path]


def recognise(path: Path) -> bool:
    """A folder most of whose subfolders hold volumes, some of them labels."""
    if not path.is_dir():
        return False
    folders = subfolders(path)
    filled = [folder for folder in folders if image_files(folder)]
    return len(filled) > _MIN_SHARE * len(folders) and any(_has_labels(folder) for folder in filled)


def read(path: Path, declaration: Declaration) -> Dataset:
    """List the cases, one a folder.

    Raises:
        DatasetError: most cases have no channel in common, or declared channels or labels are not there.
    """
    problems: list[Finding] = []
    cases = []
    for folder in subfolders(path):
        case = _read_folder(folder, path, problems)
        if case.images or case.labels or case.masks:
            cases.append(case)
        elif (file := volume_below(folder)) is not None:
            problems.append(_nested(file, folder, path))
    cases = _same_channel(_same_capitals(cases))
    found = found_channels([case.images for case in cases if case.images], declaration, path)
    channels = choose_channels(found, declaration, path)
    structures = sorted({name for case in cases for name in case.masks})
    # Without masks the ids of the label maps mean something, which only a declaration can tell.
    labels = mask_labels(structures, declaration, path) if structures else {}
    entries = []
    for case in cases:
        if len(case.labels) + bool(case.masks) > 1:
            problems.append(_ambiguous(case, path))
            continue
        if case.images and not case.images.keys() & set(channels):
            problems.append(_other_channels(case, channels, path))
            continue
        entries.append(
            Entry(
                images=tuple(case.images.get(name) for name in channels),
                label=case.labels[0] if case.labels else None,
                masks=in_label_order(case.masks, labels) if structures and not case.labels else (),
                name=case.name,
            )
        )
    return build(
        entries,
        root=path,
        layout=NAME,
        declaration=declaration,
        name=path.resolve().name,
        channels=channels,
        labels=labels,
        problems=problems,
    )


def _has_labels(folder: Path) -> bool:
    inner = any(sub.name.lower() in _MASK_FOLDERS and image_files(sub) for sub in subfolders(folder))
    return inner or any(_LABEL.search(stem(file)) for file in image_files(folder))


def _read_folder(folder: Path, root: Path, problems: list[Finding]) -> _Folder:
    files = image_files(folder)
    labels = [file for file in files if _LABEL.search(stem(file))]
    inner = [sub for sub in subfolders(folder) if sub.name.lower() in _MASK_FOLDERS]
    masks = [(stem(file), file) for sub in inner for file in image_files(sub)]
    start = _shared_start(folder.name, [stem(file) for file in files])
    images = [(_channel(stem(file), start), file) for file in files if file not in labels]
    return _Folder(
        folder.name,
        by_name(images, root, problems, case=folder.name),
        labels,
        by_name(masks, root, problems, case=folder.name),
    )


def _shared_start(folder: str, stems: Sequence[str]) -> str:
    """What all file names of a case start with: the name of its folder, or else whole words they share."""
    if all(name.casefold().startswith(folder.casefold()) for name in stems):
        return folder
    if len(stems) < 2:
        return ""
    first, last = min(stems), max(stems)
    same = [a == b for a, b in zip(first, last, strict=False)]
    shared = first[: same.index(False) if False in same else len(same)]
    return shared[: max(shared.rfind(mark) for mark in "_-. ") + 1]


def _channel(name: str, start: str) -> str:
    return name[len(start) :].strip("_-. ") or "image"


def _same_capitals(cases: list[_Folder]) -> list[_Folder]:
    """Spell every channel as most cases do: `CT` is the `ct` of the others, unless a case has both."""
    counts = Counter(name for case in cases for name in case.images)
    usual: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        usual.setdefault(name.casefold(), name)
    renamed = []
    for case in cases:
        images = {usual[name.casefold()]: path for name, path in case.images.items()}
        renamed.append(replace(case, images=images) if len(images) == len(case.images) else case)
    return renamed


def _same_channel(cases: list[_Folder]) -> list[_Folder]:
    """With one image in every case, however named, that image is the only channel."""
    images = [case.images for case in cases if case.images]
    names = {name for case in images for name in case}
    if len(names) < 2 or any(len(case) > 1 for case in images):
        return cases
    return [replace(case, images=dict(zip(["image"], case.images.values(), strict=False))) for case in cases]


def _nested(file: Path, folder: Path, root: Path) -> Finding:
    message = f"the volumes of a case must lie in its folder itself; received {relative(file, folder)}"
    remedy = "move them up, or the folder elsewhere; or list the cases in a table"
    return problem("file-name", message, remedy, file=file, root=root, case=folder.name)


def _other_channels(case: _Folder, channels: Sequence[str], root: Path) -> Finding:
    message = (
        f"a case must have every channel ({', '.join(channels)}); received {', '.join(case.images)} only"
    )
    remedy = "name the files as in the other cases, or remove the case"
    file = next(iter(case.images.values()))
    return problem("modality-missing", message, remedy, file=file, root=root, case=case.name)


def _ambiguous(case: _Folder, root: Path) -> Finding:
    names = [*(file.name for file in case.labels), *(["a folder of masks"] if case.masks else [])]
    message = f"a case must have one label map or one folder of masks; received {', '.join(names[:4])}"
    remedy = "keep one of them, or list the cases in a table"
    file = case.labels[0]
    return problem("label-ambiguous", message, remedy, file=file, root=root, case=case.name)
