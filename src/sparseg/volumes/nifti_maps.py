"""Maps of values from 0 to 1 as NIfTI, one byte each, written map by map: never more than one in memory."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparseg.errors import VolumeError
from sparseg.shapes import Triple
from sparseg.volumes.atomic import write_atomically
from sparseg.volumes.byte_source import ByteSource
from sparseg.volumes.nifti_writer import file_slabs, make_head

FULL = 255
_GZIP_LEVEL = 3
_READ_BYTES = 2**20


def write_maps(
    path: Path, maps: Iterable[np.ndarray], names: Sequence[str], shape: Triple, affine: np.ndarray
) -> None:
    """Write maps as one .nii.gz: three axes for one map, a fourth that counts the maps for several.

    Stored are bytes of 0 to 255 with the slope 1/255, so that programs show 0 to 1; no value is
    off by more than 1/510.

    Args:
        path: Final name; it exists afterwards only if the file read back equal.
        maps: uint8 `[H, W, D]` each, 255 for 1; taken one after the other.
        names: What each map shows, stored as a JSON comment extension {"maps": [...]}.
        shape: (H, W, D).
        affine: 4x4 voxel -> RAS mm.

    Raises:
        VolumeError: the file cannot be written, or reads back different.
        GeometryError: an affine that float32 cannot hold.
    """
    size = (*shape, len(names)) if len(names) > 1 else shape
    extension = json.dumps({"maps": list(names)}).encode()
    head = make_head(np.dtype(np.uint8), size, affine, extension, path, slope=1 / FULL)
    digest = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        # No name and no time in the gzip header: equal content gives equal bytes, and nothing leaks.
        with gzip.GzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0) as stream:
            stream.write(head)
            digest.update(head)
            for _, values in zip(names, maps, strict=True):
                assert values.shape == tuple(shape)
                assert values.dtype == np.uint8
                for slab in file_slabs(values):
                    stream.write(slab)
                    digest.update(slab)

    def verify(temporary: Path) -> None:
        found = hashlib.sha256()
        with ByteSource(temporary, compressed=True, where=str(path)) as source:
            while chunk := source.read(_READ_BYTES):
                found.update(chunk)
            source.finish()
        if found.digest() != digest.digest():
            raise VolumeError(
                "the written file must read back equal",
                received="different bytes",
                remedy="check the disk and write again",
                where=path,
                code="write-verify",
            )

    write_atomically(path, write, verify)
