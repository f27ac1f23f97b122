"""Row N20: unusual but valid files that a strict reader must still accept."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from sparseg.volumes.nifti import read_nifti

from .nifti_faults import base_affine, base_array, nifti_bytes, patched, rotated, save

_EXTENSION = (32).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"a comment".ljust(24, b"\0")


def _with_extension() -> bytes:
    raw = patched(nifti_bytes(), 108, "f", 384.0)
    return raw[:348] + b"\1\0\0\0" + _EXTENSION + raw[352:]


def _big_endian(version: int) -> bytes:
    return nifti_bytes(version=version, endianness=">")


ODDITIES = {
    "plain": nifti_bytes(),
    "nifti2": nifti_bytes(version=2),
    "big endian": _big_endian(1),
    "big endian nifti2": _big_endian(2),
    "extension": _with_extension(),
    "padding before voxels": patched(nifti_bytes(), 108, "f", 1024.0)[:352]
    + bytes(672)
    + nifti_bytes()[352:],
    "vox_offset 0": patched(nifti_bytes(), 108, "f", 0.0),
    "qform only": nifti_bytes(sform=(None, 0)),
    "sform only": nifti_bytes(qform=(None, 0)),
    "sform only, junk quaternion": patched(nifti_bytes(qform=(None, 0)), 256, "3f", 9.0, float("nan"), 9.0),
    "qform only, junk sform": patched(nifti_bytes(sform=(None, 0)), 280, "f", float("nan")),
    "talairach code": nifti_bytes(qform=(base_affine(), 1), sform=(base_affine(), 3)),
    "template code": patched(nifti_bytes(), 254, "h", 5),
    "qfac 0": patched(nifti_bytes(), 76, "f", 0.0),
    "unit not stated": patched(nifti_bytes(), 123, "B", 0),
    "time unit": patched(nifti_bytes(), 123, "B", 2 | 8),
    "slope 0, inter not finite": patched(nifti_bytes(), 112, "ff", 0.0, float("nan")),
    "slope and inter nan": patched(nifti_bytes(), 112, "ff", float("nan"), float("nan")),
    "dim beyond the last axis is 0": patched(nifti_bytes(), 48, "4h", 0, 0, 0, 0),
    "cal range": patched(nifti_bytes(), 124, "ff", 400.0, -100.0),
    "intent": patched(nifti_bytes(), 68, "h", 1002),
    "junk in unused text": patched(nifti_bytes(), 148, "80s", bytes(range(128, 208))),
    "pixdim rounded to 4 digits": patched(nifti_bytes(), 80, "3f", 1.5001, 0.9999, 2.0001)[:252]
    + b"\0\0"
    + nifti_bytes()[254:],
    "float64": nifti_bytes(base_array().astype("<f8")),
    "trailing unit axes": nifti_bytes(base_array()[..., None, None, None]),
}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("oddity", ODDITIES)
def test_n20_odd_but_valid(tmp_path: Path, name: str, oddity: str) -> None:
    volume = read_nifti(save(tmp_path / name, ODDITIES[oddity]))
    np.testing.assert_array_equal(volume.array[0], base_array())
    np.testing.assert_allclose(volume.affine, base_affine(), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["ü ñ 脳.nii.gz", "with space.nii", "UPPER.NII.GZ", "a.b.c.nii.gz", "-rf.nii"]
)
def test_n20_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(nifti_bytes()) if name.lower().endswith("gz") else nifti_bytes())
    np.testing.assert_array_equal(read_nifti(path).array[0], base_array())


def test_n20_gzip_of_several_members_and_padding(tmp_path: Path) -> None:
    raw = nifti_bytes()
    for index, packed in enumerate(
        [
            gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]),
            gzip.compress(raw[:300]) + gzip.compress(b"") + gzip.compress(raw[300:]) + gzip.compress(b""),
            gzip.compress(raw) + bytes(512),
            gzip.compress(raw, 0),
        ]
    ):
        path = tmp_path / f"{index}.nii.gz"
        path.write_bytes(packed)
        np.testing.assert_array_equal(read_nifti(path).array[0], base_array())


def test_n20_oblique_with_both_forms(tmp_path: Path) -> None:
    affine = rotated(base_affine() @ np.diag([-1, -1, 1, 1]))
    volume = read_nifti(save(tmp_path / "a.nii.gz", nifti_bytes(qform=(affine, 1), sform=(affine, 2))))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
