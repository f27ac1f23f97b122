"""Segmentation files of 3D Slicer (.seg.nrrd): one layer of exclusive labels, with names and colours.

The keys are those of Slicer's developer guide (slicer.readthedocs.io, "Segmentations"). The file is an
ordinary NRRD file as well, which `read_itk` reads as a label map.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparseg.errors import LabelError, VolumeError
from sparseg.volumes.atomic import write_atomically
from sparseg.volumes.nifti_writer import file_slabs
from sparseg.volumes.nrrd_header import parse_nrrd
from sparseg.volumes.packed_bytes import read_bytes_at
from sparseg.volumes.text_header import LPS_TO_RAS, MAX_HEADER
from sparseg.volumes.volume import Volume

SUFFIX = ".seg.nrrd"
_GZIP_LEVEL = 3
_NO_EXTENT = (0, -1, 0, -1, 0, -1)
_TYPES = ("uint8", "uint16")


def write_seg_nrrd(
    path: Path | str,
    labels: np.ndarray,
    affine: np.ndarray,
    *,
    label_names: Mapping[int, str],
    label_colours: Mapping[int, tuple[int, int, int]],
) -> None:
    """Write a label map as a segmentation of 3D Slicer.

    Every name but the background's becomes a segment, whether it has voxels or not, so that the segments of
    all cases of a model are the same.

    Args:
        path: Final name, ending in .seg.nrrd; it exists afterwards only if the file read back equal.
        labels: `[H, W, D]`, uint8 or uint16.
        affine: 4x4 voxel -> RAS mm; stored in left-posterior-superior, in double precision.
        label_names: Id -> name of the segment.
        label_colours: Id -> red, green, blue of 0 to 255, for every id but 0 in `label_names`.

    Raises:
        LabelError: labels of another type or number of axes, or an id without a name.
        VolumeError: another suffix, more segments than a header holds, or the file cannot be written or reads
            back different.
        GeometryError: an affine that is not invertible.
    """
    path = Path(path)
    if labels.dtype.name not in _TYPES or labels.ndim != 3:
        raise LabelError(
            "a label map must be [H,W,D] of uint8 or uint16",
            received=f"{labels.dtype} {labels.shape}",
            remedy="convert the ids to uint8 or uint16",
            where=path,
            code="label-type",
        )
    if not path.name.lower().endswith(SUFFIX):
        raise VolumeError(
            f"a segmentation of 3D Slicer must be called *{SUFFIX}",
            received=path.name,
            remedy=f"give it a name that ends in {SUFFIX}",
            where=path,
            code="seg-nrrd-suffix",
        )
    place = Volume(labels[None], affine, source=str(path)).affine
    labels = labels.astype(labels.dtype.newbyteorder("<"), copy=False)
    extents = _extents(labels)
    _require_names(extents, label_names, path)
    head = _head(labels, place, _segments(extents, label_names, label_colours), path)
    write_atomically(
        path,
        partial(_write_stream, head=head, labels=labels),
        partial(_verify, head=head, labels=labels, affine=place, path=path),
    )


def _head(labels: np.ndarray, affine: np.ndarray, segments: list[str], path: Path) -> bytes:
    lps = LPS_TO_RAS @ affine
    lines = [
        "NRRD0004",
        f"type: {labels.dtype.name}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, labels.shape))}",
        f"space directions: {' '.join(_vector(lps[:3, axis]) for axis in range(3))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(lps[:3, 3])}",
        *segments,
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        # The name of this key up to Slicer 5.0, and since.
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_SourceRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    head = ("\n".join(lines) + "\n\n").encode()
    if len(head) > MAX_HEADER:
        raise VolumeError(
            f"the header with all segments must fit into {MAX_HEADER} bytes",
            received=f"{len(segments)} lines",
            remedy="write .nii.gz instead",
            where=path,
            code="seg-nrrd-too-many",
        )
    return head


def _require_names(extents: Mapping[int, list[int]], names: Mapping[int, str], path: Path) -> None:
    unnamed = [label for label in extents if label not in names]
    if unnamed:
        raise LabelError(
            "every id of a segmentation must have a name, or 3D Slicer does not show it",
            received=f"id {unnamed[0]} without one",
            remedy="name all ids",
            where=path,
            code="seg-nrrd-unnamed",
        )


def _segments(
    extents: Mapping[int, list[int]], names: Mapping[int, str], colours: Mapping[int, tuple[int, int, int]]
) -> list[str]:
    lines = []
    for number, label in enumerate(sorted(label for label in names if label)):
        values = {
            "Color": " ".join(f"{part / 255:.6g}" for part in colours[label]),
            "ColorAutoGenerated": "0",
            "Extent": " ".join(map(str, extents.get(label, _NO_EXTENT))),
            "ID": f"Segment_{label}",
            "LabelValue": str(label),
            "Layer": "0",
            "Name": _escaped(names[label]),
            "NameAutoGenerated": "0",
            "Tags": "|",
        }
        lines += [f"Segment{number}_{key}:={value}" for key, value in values.items()]
    return lines


def _extents(labels: np.ndarray) -> dict[int, list[int]]:
    """First and last voxel along each axis, of every id but 0 that has voxels."""
    used = [np.zeros((int(labels.max(initial=0)) + 1, size), dtype=bool) for size in labels.shape]
    for i in range(labels.shape[0]):
        places = np.flatnonzero(labels[i])
        ids = labels[i].reshape(-1)[places]
        rows, columns = np.divmod(places, labels.shape[2])
        used[0][ids, i] = used[1][ids, rows] = used[2][ids, columns] = True
    return {
        int(label): [int(end) for axis in used for end in np.flatnonzero(axis[label])[[0, -1]]]
        for label in np.flatnonzero(used[0].any(axis=1))
    }


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value) + 0.0) for value in values)})"  # without a minus before zero


def _escaped(text: str) -> str:
    """Escapes of the NRRD format for values of keys, so that a name stays one line."""
    return text.replace("\\", "\\\\").replace("\r", " ").replace("\n", "\\n")


def _write_stream(file: BinaryIO, *, head: bytes, labels: np.ndarray) -> None:
    file.write(head)
    with gzip.GzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0) as stream:
        for slab in file_slabs(labels):
            stream.write(slab)


def _verify(temporary: Path, *, head: bytes, labels: np.ndarray, affine: np.ndarray, path: Path) -> None:
    with temporary.open("rb") as file:
        header = parse_nrrd(file.read(MAX_HEADER), path)
    stored = read_bytes_at(temporary, len(head), header.num_bytes, compressed=True)
    place = 0
    equal = (
        header.sizes == labels.shape
        and header.data_offset == len(head)
        and header.affine is not None
        and np.allclose(header.affine, affine, rtol=1e-12, atol=1e-12)
    )
    for slab in file_slabs(labels):
        equal = equal and stored[place : place + len(slab)].tobytes() == slab
        place += len(slab)
    if not equal or header.num_bytes != place:
        raise VolumeError(
            "the written file must read back equal",
            received="different voxels or another place",
            remedy="check the disk and write again",
            where=path,
            code="write-verify",
        )
