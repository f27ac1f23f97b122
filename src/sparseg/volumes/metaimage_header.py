"""Header of a MetaImage file (.mha, .mhd), read by hand and checked before anything is allocated.

Format: the MetaIO documentation of ITK, checked against files that SimpleITK writes.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sparseg.volumes.text_header import (
    LPS_TO_RAS,
    MAX_HEADER,
    TextHeader,
    bad_header,
    bad_place,
    check_sizes,
    data_file_beside,
    real_numbers,
    whole_numbers,
)

_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    # As MetaIO has it on every system: a long is four bytes, a long long eight.
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_FIRST_NAME = re.compile(r"[A-Za-z][\w.\- ]*")
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
_ORIGIN = ("Offset", "Position", "Origin")
_SPACING = ("ElementSpacing", "ElementSize")
_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
# What is read below. ITK writes metadata of any name beside them: dim[0] of NIfTI, 0008|0060 of DICOM.
_KNOWN = {
    *_MATRIX,
    *_ORIGIN,
    *_SPACING,
    *_ORDER,
    "ObjectType",
    "NDims",
    "DimSize",
    "HeaderSize",
    "BinaryData",
    "CompressedData",
    "CompressedDataSize",
    "ElementType",
    "ElementNumberOfChannels",
    "ElementToIntensityFunctionSlope",
    "ElementToIntensityFunctionOffset",
}


def parse_metaimage(raw: bytes, where: Path) -> TextHeader:
    """Read a header.

    Args:
        raw: First bytes of the file, at least the whole header.
        where: The file.

    Raises:
        VolumeError: not MetaImage, a missing or malformed field, or data that are not one scalar 3-D image
            (with channels) stored as bytes.
        GeometryError: a bad matrix, origin or spacing.
    """
    fields, end = _fields(raw, where)
    if fields.get("ObjectType", "Image") != "Image":
        raise bad_header("'ObjectType' must be Image", fields["ObjectType"][:30], where, "not-metaimage")
    (dimension,) = whole_numbers(_need(fields, "NDims", where), "NDims", where)[:1]
    sizes = whole_numbers(_need(fields, "DimSize", where), "DimSize", where)
    if dimension not in (3, 4) or (dimension == 4 and sizes[3:] != (1,)):
        raise bad_header(
            "an image must have three axes",
            f"NDims {dimension}, DimSize {list(sizes)}",
            where,
            "dimension",
            "split a series over time into files of three axes",
        )
    check_sizes(sizes, dimension, "DimSize", where)
    (channels,) = whole_numbers(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels", where)
    check_sizes((channels,), 1, "ElementNumberOfChannels", where)
    compressed = _flag(fields, "CompressedData", where)
    data = fields["ElementDataFile"]
    local = data.upper() == "LOCAL"
    affine, spacing = _place(fields, dimension, where)
    packed = fields.get("CompressedDataSize")
    return TextHeader(
        dtype=_dtype(fields, where),
        sizes=(channels, *sizes[:3]),
        channel_axis=0,
        affine=affine,
        spacing=spacing,
        packing="zlib" if compressed else "raw",
        data_file=where if local else data_file_beside(data, where),
        data_offset=end if local else _header_size(fields, where),
        packed_size=whole_numbers(packed, "CompressedDataSize", where)[0] if compressed and packed else None,
    )


def _fields(raw: bytes, where: Path) -> tuple[dict[str, str], int]:
    """Return the fields, and the byte after the line ElementDataFile that ends them."""
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        stop = raw.find(b"\n", position, MAX_HEADER)
        if stop < 0 and not raw[position : position + 15] == b"ElementDataFile":
            raise bad_header(
                "the header must end with 'ElementDataFile'", "no such line", where, "not-metaimage"
            )
        stop = len(raw) - 1 if stop < 0 else stop
        line = raw[position : stop + 1].decode("utf-8", errors="replace").strip()
        position = stop + 1
        if not line:
            continue
        name, mark, value = line.partition("=")
        name = name.strip()
        twice = name in _KNOWN and name in fields
        if not mark or not name or twice or not (fields or _FIRST_NAME.fullmatch(name)):
            raise bad_header(
                "every header line must be 'Field = value', each field once",
                repr(line[:60]),
                where,
                "not-metaimage",
            )
        fields[name] = value.strip()
    return fields, position


def _need(fields: dict[str, str], name: str, where: Path) -> str:
    if name not in fields:
        raise bad_header(f"the header must have '{name}'", "no such line", where, "header")
    return fields[name]


def _flag(fields: dict[str, str], name: str, where: Path) -> bool:
    text = fields.get(name, "False").lower()
    if text not in ("true", "false", "1", "0"):
        raise bad_header(f"'{name}' must be True or False", text[:20], where, "header")
    return text in ("true", "1")


def _dtype(fields: dict[str, str], where: Path) -> np.dtype[np.generic]:
    kind = _need(fields, "ElementType", where).upper()
    if kind not in _DTYPES:
        raise bad_header("'ElementType' must be a real number type", kind[:40], where, "type")
    if not _flag({"BinaryData": "True", **fields}, "BinaryData", where):
        raise bad_header("numbers must be stored as bytes", "BinaryData = False", where, "encoding")
    slope = fields.get("ElementToIntensityFunctionSlope", "1")
    offset = fields.get("ElementToIntensityFunctionOffset", "0")
    if real_numbers(f"{slope} {offset}", "ElementToIntensityFunction", 2, where).tolist() != [1.0, 0.0]:
        # ITK reads past these fields, so no two tools agree on what the values are.
        raise bad_header("the values must be stored unscaled", f"{slope} and {offset}", where, "scaled")
    names = [name for name in _ORDER if name in fields]
    big = {_flag(fields, name, where) for name in names} or {False}
    if len(big) > 1:
        raise bad_header("the byte order must be stated once", names, where, "header")
    return np.dtype((">" if big.pop() else "<") + _DTYPES[kind])


def _header_size(fields: dict[str, str], where: Path) -> int:
    (size,) = whole_numbers(fields.get("HeaderSize", "0"), "HeaderSize", where)[:1]
    if size < 0:
        raise bad_header("'HeaderSize' must not be negative", size, where, "skip")
    return size


def _place(
    fields: dict[str, str], dimension: int, where: Path
) -> tuple[np.ndarray | None, tuple[float, ...]]:
    """Return the affine to RAS mm, None without matrix or spacing, and the spacing, if stated."""
    matrix, origin, spacing = (_one_of(fields, names, where) for names in (_MATRIX, _ORIGIN, _SPACING))
    edges: np.ndarray | None = None
    if spacing is not None:
        edges = real_numbers(fields[spacing], spacing, dimension, where)[:3]
        if edges.min() <= 0:
            raise bad_place(f"'{spacing}' must be positive", edges.tolist(), where, "bad-spacing")
    steps = () if edges is None else tuple(edges.tolist())
    if matrix is None or origin is None or edges is None:
        return None, steps
    directions = real_numbers(fields[matrix], matrix, dimension**2, where).reshape(dimension, dimension)[
        :3, :3
    ]
    if np.abs(np.linalg.norm(directions, axis=1) - 1).max() > 1e-3:
        raise bad_place(
            f"'{matrix}' must hold directions of length 1", fields[matrix][:120], where, "bad-matrix"
        )
    affine = np.eye(4)
    # Row i of the matrix is the direction in which axis i grows.
    affine[:3, :3] = directions.T * edges
    affine[:3, 3] = real_numbers(fields[origin], origin, dimension, where)[:3]
    return LPS_TO_RAS @ affine, steps


def _one_of(fields: dict[str, str], names: tuple[str, ...], where: Path) -> str | None:
    """The name under which a field is stated, None if under none.

    ElementSize, the size of the sensor, stands in for a missing ElementSpacing and may differ from it.
    """
    found = [name for name in names if name in fields]
    if len(found) > 1 and names is not _SPACING:
        raise bad_place("orientation and origin must be stated once", found, where, "stated-twice")
    return found[0] if found else None
