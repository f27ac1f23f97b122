"""BIDS with label derivatives: `sub-X[/ses-Y]/anat`, `derivatives/labels`, names in `dseg.tsv`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sparseg.datasets.declaration import FILE
from sparseg.datasets.writers.files import (
    write_declaration,
    write_entries,
    write_json,
    write_readme,
    write_text,
)
from sparseg.datasets.writers.written import Header, WrittenCase
from sparseg.errors import DatasetError

_LABELS = "derivatives/labels"
_BIDS_VERSION = "1.10.0"


def write(root: Path, cases: Iterable[WrittenCase], header: Header) -> None:
    """Write a raw dataset with one file per channel, and the label maps as its derivative.

    Raises:
        DatasetError: two channels or two cases that BIDS could not tell apart, or channels in another order
            than the alphabetical one that BIDS readers see.
    """
    suffixes = [_suffix(name) for name in header.channels]
    _require_order(suffixes, header)
    stems: dict[str, str] = {}
    entries = write_entries(
        root,
        cases,
        header,
        lambda case: [f"{_folder(case, suffix)}/{_stem(case, stems)}_{suffix}.nii.gz" for suffix in suffixes],
        lambda case: f"{_LABELS}/{_folder(case, suffixes[0])}/{_stem(case, stems)}_dseg.nii.gz",
    )
    common = {"BIDSVersion": _BIDS_VERSION, "GeneratedBy": [{"Name": "sparseg"}]}
    titles = {"Name": header.name, "DatasetType": "raw"}
    write_json(root / "dataset_description.json", titles | common)
    if any(entry.label for entry in entries):
        titles = {"Name": f"{header.name}: labels", "DatasetType": "derivative"}
        write_json(root / _LABELS / "dataset_description.json", titles | common)
        rows = [f"{label_id}\t{name}" for label_id, name in header.labels.items()]
        write_text(root / _LABELS / "dseg.tsv", "\n".join(["index\tname", *rows]))
    subjects = sorted({f"sub-{_plain(entry.subject)}" for entry in entries})
    write_text(root / "participants.tsv", "\n".join(["participant_id", *subjects]))
    # BIDS readers take the folder's name for the title; labels are in dseg.tsv, regions nowhere.
    write_declaration(root, header, labels=bool(header.regions))
    # What BIDS does not know; its validator leaves out what is listed.
    write_text(root / ".bidsignore", f"{FILE}\n*_ct.nii.gz\nsynth.json")
    write_readme(root, header, "README")


def _plain(text: str) -> str:
    """BIDS labels are letters and digits only."""
    return re.sub(r"[^0-9A-Za-z]", "", text)


def _suffix(channel: str) -> str:
    plain = _plain(channel)
    return "ct" if plain.upper() == "CT" else plain


def _folder(case: WrittenCase, suffix: str) -> str:
    session = f"ses-{_plain(case.name)}/" if case.subject else ""
    return f"sub-{_plain(case.subject or case.name)}/{session}{'ct' if suffix == 'ct' else 'anat'}"


def _stem(case: WrittenCase, stems: dict[str, str]) -> str:
    session = f"_ses-{_plain(case.name)}" if case.subject else ""
    stem = f"sub-{_plain(case.subject or case.name)}{session}"
    if not _plain(case.name) or stems.setdefault(stem.casefold(), case.name) != case.name:
        raise DatasetError(
            "in BIDS, cases must differ in the letters and digits of their names",
            received=f"'{case.name}' and '{stems.get(stem.casefold(), '')}'",
            remedy="rename one of them, or write another layout",
            code="case-name",
        )
    return stem


def _require_order(suffixes: list[str], header: Header) -> None:
    if suffixes != sorted(set(suffixes)) or "" in suffixes:
        raise DatasetError(
            "in BIDS, channels must differ in their letters and digits and come in alphabetical order",
            received=", ".join(header.channels),
            remedy="order or rename the channels, or write another layout",
            code="channel-names",
        )
