"""Header of a NRRD file, read by hand and checked before anything is allocated.

Format: teem.sourceforge.net/nrrd/format.html, NRRD0001 to NRRD0005.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from sparseg.volumes.text_header import (
    MAX_HEADER,
    TextHeader,
    bad_header,
    bad_place,
    check_sizes,
    data_file_beside,
    real_numbers,
    whole_numbers,
)

_TYPES = {
    "i1": "signed char,int8,int8_t",
    "u1": "uchar,unsigned char,uint8,uint8_t",
    "i2": "short,short int,signed short,signed short int,int16,int16_t",
    "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    "i4": "int,signed int,int32,int32_t",
    "u4": "uint,unsigned int,uint32,uint32_t",
    "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
    "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
    "f4": "float",
    "f8": "double",
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names.split(",")}
# Directions of the three world axes, as signs that turn them into RAS.
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_MM_PER_UNIT = {"mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3}
_CHANNEL_KINDS = {"vector", "list", "none", "???", "2-vector", "3-vector", "4-vector"}
_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)


def parse_nrrd(raw: bytes, where: Path) -> TextHeader:
    """Read a header.

    Args:
        raw: First bytes of the file, at least the whole header.
        where: The file.

    Raises:
        VolumeError: not NRRD, a missing or malformed field, data that are not one scalar 3-D image (with
            channels), or an encoding that is not raw or gzip.
        GeometryError: a bad space, direction or origin.
    """
    fields, end = _fields(raw, where)
    dimension = whole_numbers(_need(fields, "dimension", where), "dimension", where)[0]
    if dimension not in (3, 4):
        raise bad_header(
            "an image must have three axes, or four with channels", dimension, where, "dimension"
        )
    sizes = whole_numbers(_need(fields, "sizes", where), "sizes", where)
    check_sizes(sizes, dimension, "sizes", where)
    directions = _directions(fields, dimension, where)
    channel_axis = _channel_axis(fields, sizes, directions, where)
    detached = fields.get("data file")
    return TextHeader(
        dtype=_dtype(fields, where),
        sizes=sizes,
        channel_axis=channel_axis,
        affine=_affine(fields, directions, where),
        spacing=_spacings(fields, directions, channel_axis, dimension, where),
        packing=_packing(fields, where),
        data_file=where if detached is None else data_file_beside(detached, where),
        data_offset=end if detached is None else 0,
    )


def _fields(raw: bytes, where: Path) -> tuple[dict[str, str], int]:
    """Return the fields by lower-case name, and the byte after the empty line that ends them."""
    if not re.match(rb"NRRD000[1-5]\r?\n", raw):
        raise bad_header("a NRRD file must start with NRRD0001 to NRRD0005", repr(raw[:8]), where, "not-nrrd")
    end = re.search(rb"\n\r?\n", raw)
    # A detached header may simply end.
    stop = end.end() if end else len(raw)
    if end is None and len(raw) >= MAX_HEADER:
        raise bad_header(f"the header must end within {MAX_HEADER} bytes", "no empty line", where, "header")
    fields: dict[str, str] = {}
    for line in raw[:stop].decode("utf-8", errors="replace").splitlines()[1:]:
        # "key:=value" pairs are free text (they may hold patient data) and are not looked at.
        if not line or line.startswith("#") or ":=" in line:
            continue
        name, colon, value = line.partition(": ")
        name = {"centerings": "centers", "datafile": "data file"}.get(
            name.lower().strip(), name.lower().strip()
        )
        if not colon or name in fields:
            raise bad_header(
                "every header line must be 'field: value', each field once", repr(line[:60]), where, "header"
            )
        fields[name] = value.strip()
    if end is None and "data file" not in fields:
        raise bad_header(
            "an empty line must follow the header",
            "an early end",
            where,
            "truncated",
            "it is cut short: copy or export it again",
        )
    return fields, stop


def _need(fields: dict[str, str], name: str, where: Path) -> str:
    if name not in fields:
        raise bad_header(f"the header must have '{name}'", "no such line", where, "header")
    return fields[name]


def _dtype(fields: dict[str, str], where: Path) -> np.dtype[np.generic]:
    kind = _need(fields, "type", where).lower()
    if kind not in _DTYPES:
        raise bad_header("'type' must be a real number type", repr(kind[:40]), where, "type")
    code = _DTYPES[kind]
    order = fields.get("endian", "little" if code[1] == "1" else "").lower()
    if order not in ("little", "big"):
        raise bad_header("'endian' must be little or big", repr(order[:20]), where, "header")
    return np.dtype(("<" if order == "little" else ">") + code)


def _packing(fields: dict[str, str], where: Path) -> Literal["raw", "zlib"]:
    encoding = _need(fields, "encoding", where).lower()
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(name, "0") != "0":
            raise bad_header(f"'{name}' must be 0", fields[name][:20], where, "skip")
    if encoding in ("raw", "gzip", "gz"):
        return "raw" if encoding == "raw" else "zlib"
    raise bad_header(
        "'encoding' must be raw or gzip",
        repr(encoding[:20]),
        where,
        "encoding",
        "write the file again as gzip",
    )


def _directions(fields: dict[str, str], dimension: int, where: Path) -> list[np.ndarray | None] | None:
    """Return one vector per axis in the header's world, None for an axis that is not one of space."""
    text = fields.get("space directions")
    if text is None:
        return None
    vectors = [
        None if word.lower() == "none" else real_numbers(word[1:-1], "space directions", 3, where)
        for word in _VECTOR.findall(text)
    ]
    if len(vectors) != dimension or sum(vector is not None for vector in vectors) != 3:
        raise bad_place(
            f"'space directions' must hold three vectors and 'none' for channels, {dimension} in all",
            text[:120],
            where,
            "bad-directions",
        )
    return vectors


def _channel_axis(
    fields: dict[str, str], sizes: tuple[int, ...], directions: list[np.ndarray | None] | None, where: Path
) -> int | None:
    kinds = fields.get("kinds", " ".join(["domain"] * len(sizes))).lower().split()
    if len(kinds) != len(sizes):
        raise bad_header(f"'kinds' must hold {len(sizes)} words", fields["kinds"][:80], where, "header")
    strange = [kind for kind in kinds if kind not in _CHANNEL_KINDS | {"domain", "space"}]
    if strange:
        raise bad_header(
            "voxels must be plain numbers or vectors of channels",
            f"kind {strange[0][:30]}",
            where,
            "kinds",
            "convert the image to scalars",
        )
    others = [axis for axis, kind in enumerate(kinds) if kind in _CHANNEL_KINDS]
    if directions is not None:
        others = [axis for axis, vector in enumerate(directions) if vector is None]
    if not others and len(sizes) == 4 and sizes[3] == 1:
        others = [3]
    if len(others) != len(sizes) - 3:
        raise bad_header(
            "an image must have three axes of space, and at most one of channels",
            f"sizes {list(sizes)}, kinds {' '.join(kinds)}",
            where,
            "axes",
            "split a series over time into files of three axes",
        )
    return others[0] if others else None


def _affine(
    fields: dict[str, str], directions: list[np.ndarray | None] | None, where: Path
) -> np.ndarray | None:
    space = fields.get("space", "").lower()
    if space not in _SPACES or directions is None:
        # "scanner-xyz", a bare "space dimension" or spacings alone do not say how the patient lies.
        return None
    units = [unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))]
    if any(unit not in _MM_PER_UNIT for unit in units) or len(set(units)) > 1:
        raise bad_place("'space units' must be one of mm, cm, m, um", units, where, "unit")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([vector for vector in directions if vector is not None], axis=1)
    origin = _need(fields, "space origin", where)
    affine[:3, 3] = real_numbers(origin.strip("() "), "space origin", 3, where)
    affine[:3] *= _MM_PER_UNIT[units[0]] if units else 1.0
    signs = np.diag([*_SPACES[space], 1.0])
    return signs @ affine


def _spacings(
    fields: dict[str, str],
    directions: list[np.ndarray | None] | None,
    channel_axis: int | None,
    dimension: int,
    where: Path,
) -> tuple[float, ...]:
    if directions is not None:
        return tuple(float(np.linalg.norm(vector)) for vector in directions if vector is not None)
    text = fields.get("spacings")
    if text is None:
        return ()
    words = text.split()
    if len(words) != dimension:
        raise bad_place(f"'spacings' must hold {dimension} numbers", text[:80], where, "bad-numbers")
    kept = " ".join(word for axis, word in enumerate(words) if axis != channel_axis)
    return tuple(real_numbers(kept, "spacings", 3, where).tolist())
