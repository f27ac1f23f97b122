"""Two plain folders, one of images and one of labels, matched by file name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.findings import Finding
from sparseg.datasets.layouts.common import (
    Entry,
    Split,
    build,
    by_name,
    default_channels,
    image_files,
    problem,
    relative,
    stem,
    subfolders,
    volume_below,
)
from sparseg.errors import DatasetError

NAME = "two folders"
NEEDS = "a folder images and a folder labels, files matched by name"

# Folder names in lower case, without `_` and `-`.
_IMAGES = {"image", "images", "imagestr", "imagetr", "img", "imgs", "ct", "cts", "mr", "mri", "mris"}
_IMAGES |= {"scan", "scans", "volume", "volumes", "vol"}
_LABELS = {"label", "labels", "labelstr", "labeltr", "mask", "masks", "seg", "segs", "segmentation"}
_LABELS |= {"segmentations", "gt", "groundtruth", "annotation", "annotations"}
_TEST_IMAGES = {"imagests", "imagets", "imagestest", "testimages"}
_TEST_LABELS = {"labelsts", "labelts", "labelstest", "testlabels"}

_LABEL_WORD = r"(?:segmentations?|labels?|masks?|seg|gt|groundtruth)"
_IMAGE_WORD = r"(?:images?|img|volumes?|vol|scan)"
_CHANNEL = re.compile(r"(.+)_(\d{4})")
Channels = dict[int, Path]
Pairs = dict[str, tuple[Channels, Path | None]]


def recognise(path: Path) -> bool:
    """A folder with a folder of images and one of labels that hold volumes."""
    if not path.is_dir():
        return False
    images, labels = _folders(path, _IMAGES), _folders(path, _LABELS)
    return bool(images and labels) and any(image_files(folder) for folder in images)


def read(path: Path, declaration: Declaration) -> Dataset:
    """Match images and labels by name; see docs/how-to/datasets.md for what may differ in the names.

    Raises:
        DatasetError: several folders of images or of labels.
    """
    problems: list[Finding] = []
    images = _by_stem(_only(path, _IMAGES), path, problems)
    labels = _by_stem(_only(path, _LABELS), path, problems)
    channelled = _names_channels(images, _label_keys(labels))
    train = _pair(images, labels, channelled)
    test = _pair(
        _by_stem(_only(path, _TEST_IMAGES), path, problems),
        _by_stem(_only(path, _TEST_LABELS), path, problems),
        channelled,
    )
    for names in (_IMAGES, _TEST_IMAGES):
        problems += _nested(_only(path, names), path)
    numbers = _usual_numbers([images for images, _ in train.values()])
    entries = _entries(train, numbers, "training", path, problems)
    entries += _entries(test, numbers, "test", path, problems)
    return build(
        entries,
        root=path,
        layout=NAME,
        declaration=declaration,
        name=path.resolve().name,
        channels=default_channels(len(numbers)),
        problems=problems,
    )


def _pair(images: Mapping[str, Path], labels: Mapping[str, Path], channelled: bool) -> Pairs:
    """Case -> (channel number -> image, label); a case without images is a label alone.

    Args:
        images: Name -> file.
        labels: Name -> file.
        channelled: Whether names of images end in channel numbers.
    """
    keys = _label_keys(labels)
    cases: Pairs = {}
    owners: dict[str, str] = {}
    # Images that have a label's very name go first: a label belongs to one case.
    for name, path in sorted(images.items(), key=lambda item: item[0] not in keys):
        match = _CHANNEL.fullmatch(name) if channelled and name not in keys else None
        base, number = (match[1], int(match[2])) if match else (name, 0)
        label = keys.get(base) or keys.get(_bare(base, _IMAGE_WORD), "")
        own = label != "" and owners.setdefault(label, base) == base
        cases.setdefault(base, ({}, labels[label] if own else None))[0][number] = path
    for name, path in labels.items():
        if name not in owners:
            # A name that an image without a label has too says that the pair was not meant.
            cases[name if name not in cases else f"{name} (label)"] = ({}, path)
    return cases


def _names_channels(images: Mapping[str, Path], keys: Mapping[str, str]) -> bool:
    """Whether numbers at the end are channels: only without them do the names match labels."""
    for name in images:
        match = _CHANNEL.fullmatch(name)
        if match and name not in keys and (match[1] in keys or _bare(match[1], _IMAGE_WORD) in keys):
            return True
    return False


def _label_keys(labels: Mapping[str, Path]) -> dict[str, str]:
    """Name as an image may have it -> name of the label; whole names go before shortened ones."""
    shortened = defaultdict(list)
    for name in labels:
        shortened[_bare(name, _LABEL_WORD)].append(name)
    single = {key: names[0] for key, names in shortened.items() if len(names) == 1}
    return {**single, **{name: name for name in labels}}


def _bare(name: str, word: str) -> str:
    """The name without a word such as `seg` at its start or end: `volume-3`, `img3` and `3_img` give `3`."""
    short = re.sub(rf"[_.-]{word}$", "", name, flags=re.IGNORECASE)
    return re.sub(rf"^{word}(?:[_.-]+|(?=\d))", "", short, flags=re.IGNORECASE) or name


def _usual_numbers(cases: Sequence[Channels]) -> list[int]:
    """Channel numbers that most cases with images have."""
    with_images = [case for case in cases if case]
    counts = Counter(number for case in with_images for number in case)
    return sorted(number for number, count in counts.items() if 2 * count > len(with_images)) or [0]


def _entries(
    pairs: Pairs, numbers: Sequence[int], split: Split, root: Path, problems: list[Finding]
) -> list[Entry]:
    entries = []
    for name in sorted(pairs):
        images, label = pairs[name]
        extra = [path for number, path in images.items() if number not in numbers]
        if extra:
            message = f"channel numbers must be those of most cases: {', '.join(map(str, numbers))}"
            remedy = "remove the file, or add this channel to the other cases"
            problems.append(problem("modality-unknown", message, remedy, file=extra[0], root=root, case=name))
            continue
        entries.append(Entry(tuple(images.get(i) for i in numbers), label, name=name, split=split))
    return entries


def _by_stem(folder: Path | None, root: Path, problems: list[Finding]) -> dict[str, Path]:
    files = image_files(folder) if folder else []
    return by_name(((stem(path), path) for path in files), root, problems)


def _nested(folder: Path | None, root: Path) -> Iterator[Finding]:
    """One problem for every folder of further images inside the folder of images."""
    known = {stem(path) for path in image_files(folder)} if folder else set()
    for sub in subfolders(folder) if folder else ():
        file = volume_below(sub, known)
        if file is not None:
            message = f"images must lie in the folder of images itself; received also {relative(file, root)}"
            yield problem("file-name", message, "move them there, or elsewhere", file=file, root=root)


def _folders(root: Path, names: Collection[str]) -> list[Path]:
    return [folder for folder in subfolders(root) if re.sub(r"[_-]", "", folder.name.lower()) in names]


def _only(root: Path, names: Collection[str]) -> Path | None:
    folders = _folders(root, names)
    if len(folders) > 1:
        raise DatasetError(
            "a dataset of two folders must have one folder of images and one of labels",
            received=", ".join(folder.name for folder in folders),
            remedy="move the others elsewhere, or list the cases in a table",
            where=root,
            code="folder-ambiguous",
        )
    return folders[0] if folders else None
