"""What the layouts share: files of a folder, entries, and the dataset that is built of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.findings import Finding
from sparseg.datasets.label_table import Regions, parse_labels
from sparseg.errors import DatasetError
from sparseg.volumes.io import SUFFIXES, case_name

Split = Literal["training", "validation", "test"]

# Folders beside cases or images that hold none.
_NO_CASES = {"derivatives", "sourcedata", "predictions", "results", "output", "outputs", "atlas", "templates"}
_DEPTH = 4


@dataclass(frozen=True)
class Entry:
    """One case as a layout lists it, complete or not.

    Attributes:
        images: One file per channel in order, None where it is missing; or one file with all channels.
        label: Label file, or None.
        masks: One file per structure: (its name, file), None where it is missing.
        name: Name of the case; empty takes it from the first image.
        subject: The patient.
        fold: Fold in which the case validates.
        split: What the case is for; validation cases validate in fold 0.
    """

    images: tuple[Path | None, ...]
    label: Path | None = None
    masks: tuple[tuple[str, Path | None], ...] = ()
    name: str = ""
    subject: str = ""
    fold: int | None = None
    split: Split = "training"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are there or claimed to be."""
        every = (*self.images, self.label, *(path for _, path in self.masks))
        return tuple(path for path in every if path is not None)


def build(
    entries: Sequence[Entry],
    *,
    root: Path,
    layout: str,
    declaration: Declaration,
    name: str,
    channels: tuple[str, ...],
    labels: dict[int, str] | None = None,
    regions: Regions | None = None,
    problems: Iterable[Finding] = (),
) -> Dataset:
    """Make the dataset: sound entries become cases, the others problems.

    Args:
        entries: In the order of the dataset.
        root: The folder, or the file that lists the cases.
        layout: Name of the layout.
        declaration: Overrides name, channels, labels and regions.
        name: Title where none is declared.
        channels: Names where none are declared.
        labels: Id -> name where none are declared; None leaves them to the label files.
        regions: Region name -> ids.
        problems: What the layout found wrong besides.
    """
    channels = declaration.channels or channels
    training: list[Case] = []
    test: list[Case] = []
    found = list(problems)
    for entry in entries:
        problem = problem_of(entry, channels, root)
        if problem is not None:
            found.append(problem)
        else:
            (test if entry.split == "test" else training).append(_case(entry))
    return Dataset(
        name=declaration.name or name,
        channels=channels,
        labels=declaration.labels or labels or {},
        training=tuple(training),
        test=tuple(test),
        root=root,
        regions=declaration.regions if declaration.labels else regions or {},
        layout=layout,
        problems=tuple(found),
    )


def problem_of(entry: Entry, channels: Sequence[str], root: Path) -> Finding | None:
    """The first thing that an entry lacks, None if it can be used."""
    case = entry_name(entry)
    shown = relative(entry.files[0], root) if entry.files else ""
    missing = [channels[i] for i, path in enumerate(entry.images) if path is None and i < len(channels)]
    if all(path is None for path in entry.images):
        message, remedy = "a label without an image", "add the image, or remove the label"
        return Finding("image-missing", "error", message, remedy, case, shown)
    if missing:
        message = f"a case must have every channel; received none of {', '.join(missing)}"
        return Finding("modality-missing", "error", message, "add the file, or remove the case", case, shown)
    without = [name for name, path in entry.masks if path is None]
    if not entry.label and len(without) == len(entry.masks):
        if entry.split != "test":
            message, remedy = "an image without a label", "add the label, or make it a test case"
            return Finding("label-missing", "error", message, remedy, case, shown)
    elif without:
        message = f"a case must have a mask of every structure; received none of {', '.join(without)}"
        remedy = "add the mask (an empty one where the structure is absent), or declare fewer labels"
        return Finding("mask-missing", "error", message, remedy, case, shown)
    for path in entry.files:
        # os.path.exists answers False for names that no file system accepts; Path.exists raises.
        if not os.path.exists(path):  # noqa: PTH110
            message, remedy = "a file that is listed is missing", "complete the dataset or remove the entry"
            return Finding("file-missing", "error", message, remedy, case, relative(path, root))
    return None


def entry_name(entry: Entry) -> str:
    """Name of the case: the one given, or that of its first file."""
    return case_name(entry.name or entry.files[0])


def _case(entry: Entry) -> Case:
    masks = tuple((name, path) for name, path in entry.masks if path is not None)
    return Case(
        name=entry_name(entry),
        images=tuple(path for path in entry.images if path is not None),
        label=entry.label,
        masks=masks,
        subject=entry.subject,
        fold=0 if entry.split == "validation" else entry.fold,
    )


def relative(path: Path, root: Path) -> str:
    """The path relative to the dataset where it lies inside it."""
    folder = root.parent if root.is_file() else root
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def problem(code: str, message: str, remedy: str, *, file: Path, root: Path, case: str = "") -> Finding:
    """An error that concerns one file."""
    return Finding(code, "error", message, remedy, case, relative(file, root))


def image_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Files of a folder with one of the suffixes, sorted; hidden files (`._a.nii.gz` of macOS) left out."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry.name, suffixes)]
    return [folder / name for name in sorted(names)]


def is_image(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file name is that of a volume."""
    return name.lower().endswith(suffixes) and not name.startswith(".")


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return [folder / name for name in sorted(names)]


def volume_below(folder: Path, known: Container[str] = (), *, depth: int = _DEPTH) -> Path | None:
    """The first volume in a folder or below it, None without.

    Args:
        folder: Where to look; one that holds no cases by its name, such as derivatives, is passed over.
        known: Names without suffix that do not count: other versions of volumes that are cases.
        depth: How many folders deep to look.
    """
    if folder.name.lower() in _NO_CASES:
        return None
    for path in image_files(folder):
        if stem(path) not in known:
            return path
    below = subfolders(folder) if depth > 1 else []
    found = (volume_below(sub, known, depth=depth - 1) for sub in below)
    return next((path for path in found if path is not None), None)


def stem(path: Path | str) -> str:
    """File name without the suffix of its format."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def by_name(
    files: Iterable[tuple[str, Path]], root: Path, problems: list[Finding], *, case: str = ""
) -> dict[str, Path]:
    """Name -> file. Second files of a name (`a.nii` beside `a.nii.gz`) are added to `problems`."""
    found: dict[str, Path] = {}
    for name, path in files:
        other = found.setdefault(name, path)
        if other is not path:
            message = f"two files must differ in more than the format; received also {other.name}"
            problems.append(
                problem("file-double", message, "remove one of them", file=path, root=root, case=case or name)
            )
    return found


def distinct_names(images: Sequence[Path]) -> list[str]:
    """Names for images: the stem; where that is not unique, with as many parent folders as it takes.

    The same file twice keeps one name, which the dataset refuses.
    """
    parts = [(*path.parts[:-1], stem(path)) for path in images]
    depths = [1] * len(images)
    for _ in range(max((len(part) for part in parts), default=0)):
        names = ["_".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        owners: dict[str, set[Path]] = {}
        for name, path in zip(names, images, strict=True):
            owners.setdefault(name.casefold(), set()).add(path)
        double = [len(owners[name.casefold()]) > 1 for name in names]
        if not any(double):
            return names
        depths = [depth + again for depth, again in zip(depths, double, strict=True)]
    return names if images else []


def default_channels(num_channels: int) -> tuple[str, ...]:
    """("image",) or ("image 0", "image 1", ...)."""
    return ("image",) if num_channels <= 1 else tuple(f"image {i}" for i in range(num_channels))


def usual_number(entries: Iterable[Entry]) -> int:
    """The number of image files that most entries have; 1 without entries."""
    counts = Counter(len(entry.images) for entry in entries)
    return max(counts, key=lambda count: (counts[count], count), default=1)


def choose_channels(found: Sequence[str], declaration: Declaration, where: Path) -> tuple[str, ...]:
    """The names found on the files, in the order to use; declared channels choose among them.

    A single channel may be declared under any name.

    Raises:
        DatasetError: a declared channel that no file is named after.
    """
    declared = declaration.channels
    if not declared or (len(declared) == 1 and len(found) <= 1):
        return tuple(found)
    names = {name.casefold(): name for name in found}
    unknown = [name for name in declared if name.casefold() not in names]
    if unknown:
        raise DatasetError(
            f"declared channels must be among those found ({', '.join(found)})",
            received=", ".join(unknown),
            remedy="correct channels in sparseg.yaml",
            where=where,
            code="channel-unknown",
        )
    return tuple(names[name.casefold()] for name in declared)


def found_channels(
    cases: Sequence[Mapping[str, Path]], declaration: Declaration, where: Path
) -> tuple[str, ...]:
    """Channels that most cases have, in alphabetical order; all names where channels are declared.

    Raises:
        DatasetError: no channel that most cases have.
    """
    counts = Counter(name for case in cases for name in case)
    names = sorted(counts, key=lambda name: (name.casefold(), name))
    usual = tuple(name for name in names if 2 * counts[name] > len(cases))
    if not usual and not declaration.channels:
        raise DatasetError(
            "most cases must have a channel in common",
            received=", ".join(names[:8]) or "no images",
            remedy="declare the channels to use in sparseg.yaml, or name the images alike",
            where=where,
            code="channels-none",
        )
    return tuple(names) if declaration.channels else usual


def mask_labels(names: Sequence[str], declaration: Declaration, where: Path) -> dict[int, str]:
    """Labels of a dataset with one mask file per structure: ids count from 1 in the order of `names`.

    Declared labels give other ids, and choose among the structures.

    Raises:
        DatasetError: a declared label without a mask, or two structures of one name.
    """
    if not declaration.labels:
        table = {"0": "background", **{str(i): name for i, name in enumerate(names, start=1)}}
        return parse_labels(table, where=where)[0]
    without = [name for i, name in declaration.labels.items() if i and name not in names]
    if without:
        raise DatasetError(
            f"declared labels must be among the structures that have masks ({', '.join(names[:20])})",
            received=", ".join(without),
            remedy="name the labels in sparseg.yaml as the masks are named",
            where=where,
            code="label-unknown",
        )
    return declaration.labels


def in_label_order(
    masks: Mapping[str, Path | None], labels: Mapping[int, str]
) -> tuple[tuple[str, Path | None], ...]:
    """(name, file) of every structure in the order of the labels, None where a case has none."""
    return tuple((name, masks.get(name)) for label_id, name in labels.items() if label_id)
