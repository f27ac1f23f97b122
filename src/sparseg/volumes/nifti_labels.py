"""Names and colours of labels, read back from the label files that sparseg writes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparseg.volumes.byte_source import ByteSource
from sparseg.volumes.nifti_header import NIFTI1_SIZE, NIFTI2_SIZE, parse_header

_COMMENT_CODE = 6
_MAX_BYTES = 2**20
_MAX_NAME = 200


@dataclass(frozen=True)
class LabelTable:
    """What a label file says of its ids.

    Attributes:
        names: Id -> name, background 0 among them if the file names it.
        colours: Id -> red, green, blue, each 0 to 255; files of earlier versions have none.
    """

    names: dict[int, str] = field(default_factory=dict)
    colours: dict[int, tuple[int, int, int]] = field(default_factory=dict)


def read_label_names(path: Path | str) -> dict[int, str]:
    """Id -> name as stored in a label file; empty for a file that stores none.

    Raises:
        VolumeError: unreadable, or not a NIfTI file.
    """
    return read_label_table(path).names


def read_label_table(path: Path | str) -> LabelTable:
    """Names and colours as stored in the header extension of a .nii or .nii.gz label file.

    Extensions of other programs, and entries that are not of the form that sparseg writes, are passed over: a
    name is a convenience, and the voxels are as good without it.

    Raises:
        VolumeError: unreadable, or not a NIfTI file.
    """
    path = Path(path)
    with ByteSource(path, compressed=path.name.lower().endswith(".gz"), where=str(path)) as source:
        raw = source.read(NIFTI2_SIZE)
        header = parse_header(raw, where=str(path))
        raw += source.read(min(max(header.data_offset - len(raw), 0), _MAX_BYTES))
    start = NIFTI1_SIZE if header.version == 1 else NIFTI2_SIZE
    order = "<" if int.from_bytes(raw[:4], "little") == start else ">"
    for comment in _comments(raw[start : header.data_offset], order):
        table = _table(comment)
        if table is not None:
            return table
    return LabelTable()


def _comments(block: bytes, order: str) -> Iterator[bytes]:
    """Yield the contents of all comment extensions in the bytes between header and voxels."""
    if not block or not block[0]:
        return
    place = 4
    while place + 8 <= len(block):
        size, code = struct.unpack_from(f"{order}2i", block, place)
        if size < 16 or place + size > len(block):
            return
        if code == _COMMENT_CODE:
            yield block[place + 8 : place + size].rstrip(b"\0")
        place += size


def _table(comment: bytes) -> LabelTable | None:
    try:
        content = json.loads(comment)
    except (ValueError, RecursionError):  # some other program's text
        return None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        return None
    names = {
        int(key): name
        for key, name in content["labels"].items()
        if _is_id(key) and isinstance(name, str) and len(name) <= _MAX_NAME
    }
    stored = content.get("colours")
    colours = {
        int(key): (colour[0], colour[1], colour[2])
        for key, colour in (stored.items() if isinstance(stored, dict) else ())
        if _is_id(key) and _is_colour(colour)
    }
    return LabelTable(names, colours)


def _is_id(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 6


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in value)
    )
