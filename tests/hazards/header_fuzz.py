"""Damaged NIfTI headers by number: the same seed makes the same file, on any machine."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from sparseg.errors import InputError
from sparseg.volumes.nifti import read_nifti

from .nifti_faults import nifti_bytes, save

SEEDS = Path(__file__).with_name("fuzz_seeds.json")
"""Error code -> seeds that lead to it, and under "accepted" some that lead to none. Seeds that ever found a
fault of the reader belong here, too, under the code that is right."""
_SMALL = np.random.default_rng(4).integers(0, 9, (4, 3, 2)).astype(np.int16)
_WHOLE = (0, 1, 2, 3, 4, -1, 5, 7, 8, 16, 24, 32, 64, 128, 256, 512, 2048, 30000, 32767, -32768)
_REAL = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 1.5, 352.0, 544.0, 1e-30, 1e30, np.inf, -np.inf, np.nan)
# Of each version the fields that a reader acts on: format -> offsets.
_FIELDS = {
    1: {
        "h": [*range(40, 56, 2), 70, 72, 252, 254],
        "f": [*range(76, 120, 4), *range(256, 328, 4)],
        "B": [39, 123, 123, 347, 348, 349],
    },
    2: {
        "i": [344, 348, 500],
        "h": [12, 14],
        "q": [*range(16, 80, 8), 168],
        "d": [*range(104, 168, 8), 176, 184, *range(352, 496, 8)],
        "B": [6, 11, 540, 541],
    },
}


class Fuzzed(NamedTuple):
    """A file's content before compression, and what a comparison needs to know of it."""

    raw: bytes
    version: int
    endianness: str
    suffix: str


def fuzzed(seed: int) -> Fuzzed:
    """Return file number `seed`: one to five fields overwritten, now and then bits or the end of the file."""
    rng = np.random.default_rng(seed)
    version, endianness = int(rng.integers(1, 3)), str(rng.choice(["<", "<", ">"]))
    codes = [(1, 1), (1, 0), (0, 1), (2, 4)][int(rng.integers(4))]
    raw = bytearray(nifti_bytes(_SMALL, version=version, endianness=endianness))
    for offset, code in zip({1: (252, 254), 2: (344, 348)}[version], codes, strict=True):
        struct.pack_into(endianness + ("h" if version == 1 else "i"), raw, offset, code)
    for _ in range(rng.integers(1, 6)):
        _overwrite(raw, rng, version, endianness)
    if rng.random() < 0.15:
        bit = int(rng.integers(8 * len(raw)))
        raw[bit // 8] ^= 1 << (bit % 8)
    if rng.random() < 0.05:
        del raw[int(rng.integers(len(raw))) :]
    return Fuzzed(bytes(raw), version, endianness, str(rng.choice([".nii", ".nii", ".nii.gz"])))


def _overwrite(raw: bytearray, rng: np.random.Generator, version: int, endianness: str) -> None:
    fields = [(fmt, offset) for fmt, offsets in _FIELDS[version].items() for offset in offsets]
    fmt, offset = fields[int(rng.integers(len(fields)))]
    if fmt == "B":
        raw[offset] = int(rng.integers(256))
    elif fmt in "fd":
        value = _REAL[int(rng.integers(len(_REAL)))]
        if rng.random() < 0.5:  # any bits at all, often a denormal or a NaN with a payload
            raw[offset : offset + struct.calcsize(fmt)] = rng.bytes(struct.calcsize(fmt))
        else:
            struct.pack_into(endianness + fmt, raw, offset, value)
    else:
        value = _WHOLE[int(rng.integers(len(_WHOLE)))]
        struct.pack_into(endianness + fmt, raw, offset, value)


def outcome(seed: int, folder: Path) -> str:
    """Read file number `seed`.

    Returns:
        The error code, or "accepted".

    Raises:
        AssertionError: it was accepted with other voxels or another affine than nibabel's.
        Exception: whatever the reader lets through that is no typed error.
    """
    made = fuzzed(seed)
    path = folder / f"fuzz{made.suffix}"
    try:
        volume = read_nifti(save(path, made.raw))
    except InputError as error:
        return error.code
    raw = bytearray(made.raw)
    offset, fmt, first = {1: (108, "f", 352), 2: (168, "q", 544)}[made.version]
    # A vox_offset of 0 means "after the header" here as in nifti1_io; nibabel takes the header for voxels.
    if struct.unpack_from(made.endianness + fmt, raw, offset)[0] == 0:
        struct.pack_into(made.endianness + fmt, raw, offset, first)
    image = nib.load(save(path, bytes(raw)))
    unit = raw[123] if made.version == 1 else struct.unpack_from(made.endianness + "i", raw, 500)[0]
    unit_mm = {1: 1000.0, 3: 0.001}.get(unit & 7, 1.0)
    peer = image.get_fdata(dtype=np.float32)
    assert np.isfinite(volume.array).all()
    np.testing.assert_array_equal(volume.array[0], peer.reshape(volume.shape, order="F"))
    np.testing.assert_allclose(volume.affine[:3], image.affine[:3] * unit_mm, rtol=1e-5, atol=1e-3)
    return "accepted"


def kept_seeds() -> dict[str, list[int]]:
    """Seeds by the outcome they must have."""
    seeds: dict[str, list[int]] = json.loads(SEEDS.read_text())
    return seeds
