"""One prepared case on disk: image, label, voxel positions per class, and a record that vouches for them.

An entry is a folder named after its key; nothing in it names a case, a patient or a path.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from sparseg.config import Config
from sparseg.datasets.cache_arrays import (
    CachedArray,
    image_array,
    label_array,
    pick_locations,
    read_locations,
    read_whole,
    unreadable,
    write_array,
)
from sparseg.datasets.facts import CaseFacts
from sparseg.errors import DatasetError
from sparseg.preprocessing.pipeline import Prepared
from sparseg.shapes import Triple

# Part of every key: changes whenever the same case and settings would be stored differently.
FORMAT = 1
MAX_LOCATIONS = 20_000
RECORD, IMAGE, LABEL, LOCATIONS = "case.json", "image.b2nd", "label.b2nd", "locations.npy"


class FileStamp(Config):
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


class CaseRecord(Config):
    """Content of `case.json`.

    Attributes:
        format: Version of the layout on disk.
        key: Name of the entry.
        shape: (C, H, W, D) of the image.
        image_dtype: float16, or float32 where a value is beyond float16.
        label_dtype: Type of the class indices, empty for a case without labels.
        spacing: Voxel edges in mm on the model grid.
        chunk: Voxels per axis that the files were laid out for.
        class_counts: Voxels per class index, 0 included.
        location_counts: Positions stored per class index.
        files: Stamp of every other file.
    """

    format: int
    key: str
    shape: tuple[int, int, int, int]
    image_dtype: str
    label_dtype: str
    spacing: tuple[float, float, float]
    chunk: Triple
    class_counts: dict[int, int]
    location_counts: dict[int, int]
    files: dict[str, FileStamp]


@dataclass(frozen=True)
class CachedCase:
    """A prepared case on disk; small, can be pickled, opens its files when they are first read.

    Attributes:
        folder: The entry.
        record: What it holds.
        name: The case's name, for messages; known in memory only.
        facts: What the case measures on its own grid, if the caller had it.
    """

    folder: Path
    record: CaseRecord
    name: str = ""
    facts: CaseFacts | None = field(default=None, repr=False, compare=False)

    @cached_property
    def image(self) -> CachedArray:
        """Prepared image `[C,H,W,D]`, float16 (float32 where a value is beyond float16)."""
        return CachedArray(self.folder / IMAGE, self.record.shape, np.dtype(self.record.image_dtype))

    @cached_property
    def label(self) -> CachedArray:
        """Class indices `[1,H,W,D]`.

        Raises:
            DatasetError: the case has no labels.
        """
        if not self.labelled:
            raise DatasetError(
                "a case must have labels to be trained on or scored",
                received=self.name or "a case without",
                remedy="add its label file, or leave the case out",
                code="label-missing",
            )
        shape = (1, *self.record.shape[1:])
        return CachedArray(self.folder / LABEL, shape, np.dtype(self.record.label_dtype))

    @property
    def labelled(self) -> bool:
        """Whether the case has labels."""
        return bool(self.record.label_dtype)

    @property
    def locations(self) -> dict[int, np.ndarray]:
        """Class index (without 0) -> flat positions in the label's `[H,W,D]`, uint32 ascending.

        At most 20,000 per class, picked evenly. Read when asked for; the last few cases stay in memory.

        Raises:
            DatasetError: the file cannot be read.
        """
        return read_locations(self.folder / LOCATIONS, self.record.location_counts)


def write_entry(
    folder: Path, key: str, prepared: Prepared, ids: tuple[int, ...], chunk: Triple
) -> CaseRecord:
    """Write all files of an entry into an existing empty folder, read them back, and flush them to the disk.

    Args:
        folder: Not yet at its final name.
        key: Of the case.
        prepared: Image and labels on the model grid.
        ids: Label ids in the order of the class indices.
        chunk: Voxels per axis commonly read at once.

    Raises:
        DatasetError: what is read back differs.
        OSError: the disk refuses.
    """
    image = image_array(prepared.image.array)
    arrays = {IMAGE: image}
    positions: dict[int, np.ndarray] = {}
    if prepared.labels is not None:
        arrays[LABEL] = label_array(prepared.labels.array, ids)
        positions = pick_locations(arrays[LABEL], MAX_LOCATIONS)
    for name, array in arrays.items():
        write_array(folder / name, array, chunk)
        if not np.array_equal(read_whole(folder / name), array):
            raise unreadable(folder / name, ValueError("other values than were written"))
    flat = np.concatenate([np.zeros(0, np.uint32), *positions.values()])
    np.save(folder / LOCATIONS, flat, allow_pickle=False)
    label = arrays.get(LABEL)
    counts = np.zeros(0, np.int64) if label is None else np.bincount(label.reshape(-1))
    a, b, c = (round(edge, 6) for edge in prepared.image.spacing)
    record = CaseRecord(
        format=FORMAT,
        key=key,
        shape=(image.shape[0], image.shape[1], image.shape[2], image.shape[3]),
        image_dtype=image.dtype.name,
        label_dtype="" if label is None else label.dtype.name,
        spacing=(a, b, c),
        chunk=chunk,
        class_counts={int(i): int(counts[i]) for i in np.flatnonzero(counts)},
        location_counts={label: len(found) for label, found in positions.items()},
        files={name: _stamp(folder / name) for name in (*arrays, LOCATIONS)},
    )
    (folder / RECORD).write_bytes(_encode(record))
    for name in (*arrays, LOCATIONS, RECORD):
        _flush(folder / name)
    return record


def read_entry(folder: Path, key: str, *, verify: bool) -> CaseRecord:
    """Read the record of an entry and compare the files with it.

    Args:
        folder: The entry.
        key: It must be an entry of this key.
        verify: Compare SHA-256 too, not only the sizes; reads all bytes (about 1 GB/s).

    Raises:
        FileNotFoundError: there is no such entry.
        DatasetError: another version, or a file that is missing or not as recorded.
    """
    path = folder / RECORD
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        record = _decode(path.read_bytes())
    except (OSError, ValueError, ValidationError) as error:
        raise unreadable(path, error) from None
    if record.format != FORMAT or record.key != key:
        raise unreadable(path, ValueError("another version or key"))
    for name, stamp in record.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != stamp.size:
            raise unreadable(file, ValueError("not there, or of another size than recorded"))
        if verify and _stamp(file) != stamp:
            raise unreadable(file, ValueError("other bytes than recorded"))
    return record


def _encode(record: CaseRecord) -> bytes:
    """JSON of the record and its own hash."""
    content = json.loads(record.model_dump_json())
    return json.dumps({"record": content, "sha256": _hash_of(content)}, indent=1, sort_keys=True).encode()


def _decode(text: bytes) -> CaseRecord:
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("sha256") != _hash_of(content.get("record")):
        raise ValueError("not the record that was written")
    return CaseRecord.model_validate(content["record"])


def _hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> FileStamp:
    with path.open("rb") as file:
        return FileStamp(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
