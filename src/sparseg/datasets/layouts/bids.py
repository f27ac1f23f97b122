"""BIDS: `sub-*/[ses-*/]anat/sub-*_T1w.nii.gz`, labels as `*_dseg` or `*_mask` in derivatives or beside."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.findings import Finding
from sparseg.datasets.layouts.bids_files import (
    LABEL_SUFFIXES,
    BidsFile,
    choose_source,
    dseg_names,
    files_of,
    misnamed_of,
    subject_folders,
)
from sparseg.datasets.layouts.common import (
    Entry,
    build,
    by_name,
    choose_channels,
    found_channels,
    in_label_order,
    mask_labels,
    problem,
)
from sparseg.errors import DatasetError

NAME = "BIDS"
NEEDS = "sub-*/[ses-*/]anat/sub-*_T1w.nii.gz, labels as *_dseg or *_mask in derivatives"

# What tells cases apart; all other entities tell images of one case apart.
_CASE_ENTITIES = ("sub", "ses", "run")
Key = tuple[str, ...]


def recognise(path: Path) -> bool:
    """A folder with sub-* folders that hold files named by the rules, or a derivative folder in one."""
    root = _raw_root(path)
    return root.is_dir() and any(files_of(folder) for folder in subject_folders(root)[:3])


def read(path: Path, declaration: Declaration) -> Dataset:
    """List the cases; those without labels are test cases, for BIDS has no other place for them.

    Args:
        path: The dataset, or the derivative folder whose labels are to be taken.
        declaration: `channels` chooses among the suffixes found, such as T1w and FLAIR.

    Raises:
        DatasetError: several derivatives with labels, or label tables that contradict each other.
    """
    root = _raw_root(path)
    images: dict[Key, list[BidsFile]] = defaultdict(list)
    for folder in subject_folders(root):
        for file in files_of(folder):
            if file.suffix not in LABEL_SUFFIXES:
                images[_key(file)].append(file)
    if not images:
        raise DatasetError(
            "a BIDS dataset must hold images",
            received="label files only",
            remedy="give the folder that holds the sub-* folders of the images",
            where=root,
            code="images-none",
        )
    files = choose_source(root, None if path == root else _absolute(path))
    labels = _usable_labels(files)
    matched, problems = _match(labels, sorted(images), root)
    problems += [
        _misnamed(path, folder, root) for folder in subject_folders(root) for path in misnamed_of(folder)
    ]
    by_case = _channels(images, root, problems)
    labelled = [by_case[key] for key in images if key in matched] or list(by_case.values())
    channels = choose_channels(found_channels(labelled, declaration, root), declaration, root)
    structures = sorted({file.entities["label"] for file in labels if "label" in file.entities})
    if structures:
        table = mask_labels(structures, declaration, root)
    else:
        table = declaration.labels or dseg_names(labels, root)
    entries = []
    for key in sorted(images):
        found = matched.get(key, [])
        doubles = _doubles(found)
        if doubles:
            problems.append(_ambiguous(doubles, root, _name(key)))
            continue
        entry = Entry(
            images=tuple(by_case[key].get(name) for name in channels),
            name=_name(key),
            subject=key[0],
            split="training" if found else "test",
        )
        # An unlabelled case that is not complete is no fault of the labelled part.
        if found or None not in entry.images:
            entries.append(_with_labels(entry, found, table))
    return build(
        entries,
        root=root,
        layout=NAME,
        declaration=declaration,
        name=root.resolve().name,
        channels=channels,
        labels=table,
        problems=problems,
    )


def _with_labels(entry: Entry, files: Sequence[BidsFile], labels: dict[int, str]) -> Entry:
    masks = {file.entities["label"]: file.path for file in files if "label" in file.entities}
    if masks:
        return replace(entry, masks=in_label_order(masks, labels))
    return replace(entry, label=files[0].path if files else None)


def _raw_root(path: Path) -> Path:
    """The dataset itself, also where the path is one of its derivatives."""
    folder = _absolute(path)
    return folder.parent.parent if folder.parent.name == "derivatives" else path


def _absolute(path: Path) -> Path:
    # Without following links, which may lead to a store that has other folder names.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _key(file: BidsFile) -> Key:
    return tuple(
        f"{entity}-{file.entities[entity]}" if entity in file.entities else "" for entity in _CASE_ENTITIES
    )


def _name(key: Key) -> str:
    return "_".join(part for part in key if part)


def _usable_labels(files: Sequence[BidsFile]) -> list[BidsFile]:
    """Label maps before masks; masks of named structures before others; native space before templates."""
    dseg = [file for file in files if file.suffix == "dseg"]
    masks = [file for file in files if file.suffix == "mask"]
    named = [file for file in masks if "label" in file.entities]
    # A label map of one structure only is none of all.
    whole = [file for file in dseg if "label" not in file.entities]
    chosen = whole or named or masks
    native = {_key(file) for file in chosen if "space" not in file.entities}
    return [file for file in chosen if "space" not in file.entities or _key(file) not in native]


def _match(
    labels: Sequence[BidsFile], keys: Sequence[Key], root: Path
) -> tuple[dict[Key, list[BidsFile]], list[Finding]]:
    """Case -> its label files: every entity that both have must agree, and only one case may fit."""
    by_subject: dict[str, list[Key]] = defaultdict(list)
    for key in keys:
        by_subject[key[0]].append(key)
    matched: dict[Key, list[BidsFile]] = defaultdict(list)
    problems = []
    for file in labels:
        wanted = _key(file)
        cases = by_subject[wanted[0]]
        fits = [wanted] if wanted in cases else [key for key in cases if _agree(wanted, key)]
        if len(fits) == 1:
            matched[fits[0]].append(file)
        elif fits:
            message = f"a label must belong to one case; received {', '.join(map(_name, fits))}"
            remedy = "name the label with the session and run of its image"
            problems.append(problem("label-ambiguous", message, remedy, file=file.path, root=root))
        else:
            message, remedy = "a label without an image", "add the image, or remove the label"
            problems.append(
                problem("image-missing", message, remedy, file=file.path, root=root, case=_name(wanted))
            )
    return matched, problems


def _agree(label: Key, case: Key) -> bool:
    return all(part in ("", own) for part, own in zip(label, case, strict=True))


def _channels(
    images: dict[Key, list[BidsFile]], root: Path, problems: list[Finding]
) -> dict[Key, dict[str, Path]]:
    """Case -> channel -> file.

    A channel is named by its suffix; where a case has several images of that suffix, by all that tells them
    apart, such as `ce-gadolinium_T1w`.
    """
    counts = Counter((key, file.suffix) for key, files in images.items() for file in files)
    several = {suffix for (_, suffix), count in counts.items() if count > 1}
    named = {
        key: [(file.variant if file.suffix in several else file.suffix, file.path) for file in files]
        for key, files in images.items()
    }
    return {key: by_name(files, root, problems, case=_name(key)) for key, files in named.items()}


def _misnamed(file: Path, subject: Path, root: Path) -> Finding:
    message = (
        "images must lie in sub-LABEL/[ses-LABEL/]anat and be called sub-LABEL[_KEY-VALUE]_SUFFIX, "
        f"letters and digits only between the marks; received {file.name}"
    )
    return problem("file-name", message, "rename or move the file", file=file, root=root, case=subject.name)


def _doubles(files: Sequence[BidsFile]) -> list[BidsFile]:
    """Label files of a case of which only one can be right."""
    counts = Counter(file.entities.get("label") for file in files)
    return [file for file in files if counts[file.entities.get("label")] > 1]


def _ambiguous(files: Sequence[BidsFile], root: Path, case: str) -> Finding:
    message = f"a case must have one label file; received {', '.join(f.path.name for f in files[:4])}"
    remedy = "keep one of them, or copy the right ones to a derivative folder of their own"
    return problem("label-ambiguous", message, remedy, file=files[0].path, root=root, case=case)
