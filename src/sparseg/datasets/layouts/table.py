"""A table of cases: CSV or TSV with a column `image` (or one per channel) and `label` (or one per structure).

Columns: `image`, or `image_T1`, `image_T2`, ... (also numbered `image_0`, ...) for several channels; `label`,
or `mask_liver`, `mask_spleen`, ...; and if wanted `case`, `subject`, `fold`, `split` (train, val or test).
Other columns are left alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.layouts import description
from sparseg.datasets.layouts.common import (
    Entry,
    Split,
    build,
    choose_channels,
    default_channels,
    distinct_names,
    in_label_order,
    mask_labels,
)
from sparseg.datasets.layouts.datalist import require_one
from sparseg.errors import DatasetError

NAME = "table"
NEEDS = "a .csv or .tsv file with columns image and label"

_SUFFIXES = {".csv", ".tsv"}
_SPLITS: dict[str, Split] = {
    "": "training",
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_HEADER_BYTES = 1 << 16
Row = Mapping[str, str]


@dataclass(frozen=True)
class _Columns:
    """Headings of a table: channel -> heading, structure -> heading; `case` and the like in lower case."""

    images: dict[str, str]
    masks: dict[str, str]


def recognise(path: Path) -> bool:
    """A table with a column of images, or a folder that holds one."""
    return _is_table(path) if path.is_file() else bool(_tables(path))


def read(path: Path, declaration: Declaration) -> Dataset:
    """List the cases, one a row; paths are absolute or relative to the table's folder.

    Raises:
        DatasetError: several tables in the folder, not readable, contradictory columns, a row that is not one
            of the table, an unknown split or fold.
    """
    file = path if path.is_file() else require_one(_tables(path), path)
    header, rows = _read_rows(file)
    columns = _columns(header, file)
    names = tuple(columns.images)
    unnamed = names == ("image",) or all(name.isdigit() for name in names)
    channels = names if unnamed else choose_channels(names, declaration, file)
    labels = mask_labels(list(columns.masks), declaration, file) if columns.masks else {}
    entries = [_entry(row, columns, channels, labels, file) for row in rows]
    description.require_one_split(entries, file)
    if not any(entry.label or any(mask for _, mask in entry.masks) for entry in entries):
        entries = [replace(entry, split="test") for entry in entries]
    stems = distinct_names([entry.files[0] if entry.files else file for entry in entries])
    return build(
        [replace(entry, name=entry.name or name) for entry, name in zip(entries, stems, strict=True)],
        root=file,
        layout=NAME,
        declaration=declaration,
        name=file.stem,
        channels=default_channels(len(channels)) if unnamed else channels,
        labels=labels,
    )


def _entry(row: Row, columns: _Columns, channels: Sequence[str], labels: dict[int, str], file: Path) -> Entry:
    def path_in(heading: str) -> Path | None:
        return file.parent / row[heading] if row.get(heading) else None

    split = row.get("split", "").lower()
    if split not in _SPLITS:
        raise DatasetError(
            "split must be train, val or test",
            received=split[:40],
            remedy="correct the column split",
            where=file,
            code="split-unknown",
        )
    masks = {name: path_in(heading) for name, heading in columns.masks.items()}
    return Entry(
        images=tuple(path_in(columns.images[name]) for name in channels),
        label=path_in("label"),
        masks=in_label_order(masks, labels) if masks else (),
        name=row.get("case", ""),
        subject=row.get("subject", ""),
        fold=description.read_fold(row.get("fold"), file),
        split=_SPLITS[split],
    )


def _columns(header: Sequence[str], file: Path) -> _Columns:
    images = {name[len("image_") :]: name for name in header if name.lower().startswith("image_")}
    masks = {name[len("mask_") :]: name for name in header if name.lower().startswith("mask_")}
    if all(name.isdigit() for name in images):
        images = dict(sorted(images.items(), key=lambda item: int(item[0])))
    if "image" in header and not images:
        images = {"image": "image"}
    elif "image" in header:
        _refuse("a table must have either image or image_CHANNEL columns", header, file)
    if "label" in header and masks:
        _refuse("a table must have either label or mask_STRUCTURE columns", header, file)
    if len(set(header)) != len(header):
        _refuse("the columns of a table must have different names", header, file)
    return _Columns(images, masks)


def _refuse(rule: str, header: Sequence[str], file: Path) -> None:
    raise DatasetError(
        rule,
        received=", ".join(header)[:120],
        remedy="rename or remove columns; see docs/how-to/datasets.md",
        where=file,
        code="table-columns",
    )


def _read_rows(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Headings and rows, all cells stripped; rows without any content left out."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(file, text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            "a table must be readable as CSV or TSV in UTF-8",
            received=str(error),
            remedy="save it as CSV in UTF-8",
            where=file,
            code="table-invalid",
        ) from None
    header = _headings(lines[0]) if lines else []
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line]
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise DatasetError(
                f"every row must have {len(header)} cells, as the heading has",
                received=f"{len(cells)} in line {number}",
                remedy="correct the row; quote cells that hold the separator",
                where=file,
                code="table-row",
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return header, rows


def _headings(cells: Sequence[str]) -> list[str]:
    """Headings, those with a meaning of their own in lower case."""
    known = {"image", "label", "case", "subject", "fold", "split"}
    stripped = [cell.strip() for cell in cells]
    return [cell.lower() if cell.lower() in known else cell for cell in stripped]


def _delimiter(file: Path, text: str) -> str:
    """Tab for .tsv; else the separator that the heading has most of (some spreadsheets write semicolons)."""
    heading = text.partition("\n")[0]
    return "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=heading.count)


def _is_table(file: Path) -> bool:
    if file.suffix.lower() not in _SUFFIXES:
        return False
    with file.open("rb") as stream:
        head = stream.read(_HEADER_BYTES).decode("utf-8-sig", errors="replace").partition("\n")[0]
    headings = _headings(next(csv.reader([head], delimiter=_delimiter(file, head)), []))
    return any(name == "image" or name.lower().startswith("image_") for name in headings)


def _tables(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    return [path for path in files if path.is_file() and _is_table(path)]
