"""Files of a BIDS dataset: their entities, where the labels lie, and what the ids mean."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sparseg.datasets.label_table import parse_labels
from sparseg.datasets.layouts.common import image_files, relative, stem, subfolders
from sparseg.errors import DatasetError

LABEL_SUFFIXES = ("dseg", "mask", "probseg")
# Series over time or direction, and field maps: no channels of a volume.
_OTHER_DATA = {"func", "fmap", "dwi", "perf", "eeg", "ieeg", "meg", "beh", "nirs", "motion", "mrs", "micr"}
# The last word of a name that says, by the rules or not, that the file holds labels.
_LABEL = re.compile(r"(?:seg|mask|label|lesion|roi)[^_]*$", re.IGNORECASE)
_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9+]+)")


@dataclass(frozen=True)
class BidsFile:
    """A file name taken apart: `sub-01_ce-gd_T1w.nii.gz` has entities sub, ce and the suffix T1w."""

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def variant(self) -> str:
        """The suffix with all entities that do not name the case."""
        rest = [f"{k}-{v}" for k, v in self.entities.items() if k not in ("sub", "ses", "run")]
        return "_".join([*rest, self.suffix])


def parse_name(path: Path) -> BidsFile | None:
    """Take a file name apart; None if it does not follow the rules."""
    *parts, suffix = stem(path.name.removesuffix(".tsv")).split("_")
    matches = [_ENTITY.fullmatch(part) for part in parts]
    if not suffix.isalnum() or not all(matches):
        return None
    return BidsFile(path, {match[1]: match[2] for match in matches if match}, suffix)


def subject_folders(root: Path) -> list[Path]:
    """The sub-* folders, sorted."""
    return [folder for folder in subfolders(root) if folder.name.startswith("sub-")]


def files_of(subject: Path) -> list[BidsFile]:
    """Volumes of one subject in its data folders, with or without sessions, sorted."""
    parsed = (parse_name(path) for folders in _parts(subject).values() for path in _volumes(folders))
    return [file for file in parsed if file is not None and "sub" in file.entities]


def misnamed_of(subject: Path) -> list[Path]:
    """Volumes of one subject that are no images of a case only because of their names or folders.

    Labels of any kind are none of them. Beside images of the same session, neither are files named after one
    (`sub-01_T1w_brain` beside `sub-01_T1w`) or not after any subject.
    """
    files = files_of(subject)
    known = {file.path for file in files}
    found = []
    for top, folders in _parts(subject).items():
        images = [f for f in files if f.path.is_relative_to(top) and f.suffix not in LABEL_SUFFIXES]
        others = [path for path in _volumes(folders) if path not in known]
        if images:
            starts = tuple(f"{stem(file.path)}_" for file in images)
            others = [p for p in others if p.name.startswith("sub-") and not p.name.startswith(starts)]
        else:
            others += image_files(top)
        found += [path for path in others if not _LABEL.search(stem(path))]
    return found


def _parts(subject: Path) -> dict[Path, list[Path]]:
    """A subject and its sessions, each with its data folders."""
    parts: dict[Path, list[Path]] = {subject: []}
    for folder in subfolders(subject):
        if folder.name.startswith("ses-"):
            parts[folder] = subfolders(folder)
        else:
            parts[subject].append(folder)
    return {top: [f for f in folders if f.name not in _OTHER_DATA] for top, folders in parts.items()}


def _volumes(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in image_files(folder)]


def choose_source(root: Path, chosen: Path | None) -> list[BidsFile]:
    """Label files of the one folder that has them; folders with label maps come before those with masks.

    Args:
        root: The dataset.
        chosen: The derivative folder to take, None to look for it.

    Raises:
        DatasetError: several folders could be meant.
    """
    if chosen is not None:
        return _labels_in(chosen)
    folders = [root]
    if (root / "derivatives").is_dir():
        folders += [root / "derivatives", *subfolders(root / "derivatives")]
    found = {folder: files for folder in folders if (files := _labels_in(folder))}
    with_maps = {f: files for f, files in found.items() if any(file.suffix == "dseg" for file in files)}
    candidates = with_maps or found
    if len(candidates) > 1:
        names = [relative(folder, root) for folder in candidates]
        raise DatasetError(
            "one folder of a BIDS dataset must hold the labels",
            received=", ".join("the dataset itself" if name == "." else name for name in names),
            remedy="give the derivative folder to use as the dataset, such as DATASET/derivatives/manual",
            where=root,
            code="labels-ambiguous",
        )
    return next(iter(candidates.values()), [])


def _labels_in(folder: Path) -> list[BidsFile]:
    files = (file for subject in subject_folders(folder) for file in files_of(subject))
    return [file for file in files if file.suffix in ("dseg", "mask")]


def dseg_names(files: Sequence[BidsFile], root: Path) -> dict[int, str]:
    """Id -> name out of the `*_dseg.tsv` that apply to the label maps; empty without any.

    Raises:
        DatasetError: a malformed table, or two tables that name one id differently.
    """
    # One reading per table and per listing, however many files they apply to.
    listings: dict[Path, list[BidsFile]] = {}
    tables = {
        table
        for file in files
        if file.suffix == "dseg" and (table := _table_of(file, root, listings)) is not None
    }
    names: dict[int, str] = {}
    for table in sorted(tables):
        for label_id, name in _read_table(table):
            if names.setdefault(label_id, name) != name:
                raise DatasetError(
                    "all label tables must name an id alike",
                    received=f"{label_id}: {names[label_id]!r} and {name!r}",
                    remedy="correct the tables, or declare the labels in sparseg.yaml",
                    where=table,
                    code="label-names",
                )
    if not names:
        return {}
    names.setdefault(0, "background")
    return parse_labels({str(i): name for i, name in names.items()}, where=sorted(tables)[0])[0]


def _table_of(file: BidsFile, root: Path, listings: dict[Path, list[BidsFile]]) -> Path | None:
    """The nearest table upwards whose entities the file has all (the inheritance principle)."""
    for folder in file.path.parents:
        if folder not in listings:
            parsed = map(parse_name, sorted(folder.glob("*dseg.tsv")))
            listings[folder] = [table for table in parsed if table is not None and table.suffix == "dseg"]
        fits = [table for table in listings[folder] if table.entities.items() <= file.entities.items()]
        if fits:
            return max(fits, key=lambda table: len(table.entities)).path
        if folder == root:
            break
    return None


def _read_table(file: Path) -> Iterator[tuple[int, str]]:
    refuse = partial(
        DatasetError,
        "a label table must have the columns index (whole numbers) and name",
        remedy="correct the table, or declare the labels in sparseg.yaml",
        where=file,
        code="label-names",
    )
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise refuse(received=str(error)) from None
    for row in rows:
        index, name = row.get("index"), row.get("name")
        if index is None or name is None or not index.isdigit():
            raise refuse(received=repr(row)[:80])
        yield int(index), name
