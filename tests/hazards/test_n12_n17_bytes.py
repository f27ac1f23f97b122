"""Rows N12 to N17: files that are cut, damaged, of another kind, or lie about their size."""

from __future__ import annotations

import gzip
import io
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sparseg.errors import SparsegError
from sparseg.volumes.nifti import read_nifti

from .figures import Figure
from .nifti_faults import base_array, nifti_bytes, patched, refused, save


@pytest.mark.hazard("N12", "silent accepts")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("cut", ["half", 1000, 100, 8, 1])
def test_n12_truncated(tmp_path: Path, name: str, cut: int | str) -> None:
    path = save(tmp_path / name, nifti_bytes())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 if cut == "half" else -int(cut)])
    with refused("nifti-truncated", name):
        read_nifti(path)


@pytest.mark.hazard("N12", "silent accepts")
@pytest.mark.parametrize("size", [3, 347, 352])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_n12_only_a_header(tmp_path: Path, name: str, size: int) -> None:
    with refused("nifti-truncated"):
        read_nifti(save(tmp_path / name, nifti_bytes()[:size]))


def test_n13_bit_rot(tmp_path: Path, figure: Figure) -> None:
    path = save(tmp_path / "a.nii.gz", nifti_bytes())
    whole, reference = path.read_bytes(), base_array()
    rng = np.random.default_rng(3)
    wrong = refusals = 0
    for position in rng.integers(0, 8 * len(whole), 300):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            wrong += not np.array_equal(read_nifti(path).array[0], reference)
        except SparsegError:
            refusals += 1
    figure("N13", "wrong reads", wrong, of=300)
    assert wrong == 0
    assert refusals >= 295


@pytest.mark.hazard("N14", "silent accepts")
@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.nii", b"", "nifti-empty"),
        ("a.nii.gz", b"", "nifti-empty"),
        ("a.nii.gz", b"hello, this is text", "nifti-not-gzip"),
        ("a.nii.gz", nifti_bytes(), "nifti-not-gzip"),
        ("a.nii", gzip.compress(nifti_bytes()), "nifti-is-gzip"),
        ("a.nii.gz", b"<!DOCTYPE html><html><body>404</body></html>", "nifti-html"),
        ("a.nii", b"\n<html>" + bytes(400), "nifti-html"),
        ("a.nii", bytes(400), "nifti-bad-magic"),
        ("a.nii.gz", gzip.compress(nifti_bytes()) + b"junk after the end", "nifti-trailing"),
        ("a.nii.gz", gzip.compress(nifti_bytes()) + b"j", "nifti-trailing"),
        ("a.nii.gz", gzip.compress(nifti_bytes() + b"x"), "nifti-trailing"),
        ("a.nii", nifti_bytes() + b"x", "nifti-trailing"),
        ("a.nii", patched(nifti_bytes(), 344, "4s", b"ni1\0"), "nifti-pair"),
        ("a.img", nifti_bytes(), "nifti-suffix"),
    ],
)
def test_n14_other_content(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with refused(code, name):
        read_nifti(path)


def test_n14_missing_and_folder(tmp_path: Path) -> None:
    with refused("file-missing"):
        read_nifti(tmp_path / "none.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    with refused("file-unreadable"):
        read_nifti(tmp_path / "folder.nii.gz")


@pytest.mark.hazard("N15", "silent accepts")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("offset", "fmt", "values", "code"),
    [
        (42, "3h", (30000, 30000, 30000), "nifti-too-large"),
        (42, "3h", (1200, 1200, 1200), "nifti-truncated"),
        (42, "h", (-24,), "nifti-bad-dim"),
        (42, "h", (0,), "nifti-bad-dim"),
        (40, "h", (0,), "nifti-bad-dim"),
        (40, "h", (-3,), "nifti-bad-dim"),
        (40, "h", (8,), "nifti-bad-dim"),
        (70, "h", (77,), "nifti-bad-datatype"),
        (72, "h", (16,), "nifti-bad-bitpix"),
        (108, "f", (1e30,), "nifti-bad-offset"),
        (108, "f", (float("nan"),), "nifti-bad-offset"),
        (108, "f", (-352.0,), "nifti-bad-offset"),
        (108, "f", (100.0,), "nifti-bad-offset"),
        (108, "f", (352.5,), "nifti-bad-offset"),
        (108, "f", (368.0,), "nifti-truncated"),
        (254, "h", (-1,), "nifti-bad-code"),
        (280, "f", (float("inf"),), "nifti-bad-sform"),
        (292, "f", (1e20,), "nifti-bad-sform"),
        (292, "f", (1e7,), "nifti-qs-disagree"),
    ],
)
def test_n15_header_lies(
    tmp_path: Path, name: str, offset: int, fmt: str, values: tuple[float, ...], code: str
) -> None:
    path = save(tmp_path / name, patched(nifti_bytes(), offset, fmt, *values))
    tracemalloc.start()
    try:
        with refused(code):
            read_nifti(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def _bomb(path: Path, raw: bytes, zeros: int) -> Path:
    """Write `raw` followed by `zeros` zero bytes as gzip, a thousandth of their size."""
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as stream:
        stream.write(raw)
        for _ in range(zeros // 2**20):
            stream.write(bytes(2**20))
    path.write_bytes(packed.getvalue())
    return path


@pytest.mark.hazard("N16", "silent accepts")
def test_n16_bomb_stops_at_the_declared_size(tmp_path: Path) -> None:
    path = _bomb(tmp_path / "a.nii.gz", nifti_bytes(), 48 * 2**20)
    assert path.stat().st_size < 2**16
    tracemalloc.start()
    try:
        start = time.perf_counter()
        with refused("nifti-trailing"):
            read_nifti(path)
        assert time.perf_counter() - start < 0.5
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.hazard("N16", "silent accepts")
def test_n16_bomb_is_refused_by_max_voxels(tmp_path: Path) -> None:
    path = _bomb(tmp_path / "a.nii.gz", patched(nifti_bytes(), 42, "3h", 512, 512, 513), 2**20)
    with refused("nifti-too-large", "max_voxels"):
        read_nifti(path, max_voxels=2**27)


@pytest.mark.hazard("N17", "silent accepts")
def test_n17_header_that_hangs_itk(tmp_path: Path, figure: Figure) -> None:
    raw = patched(nifti_bytes(), 252, "hh", 0, 2)
    raw = patched(patched(raw, 280, "f", 0.0), 312 + 8, "f", float("inf"))
    start = time.perf_counter()
    with refused("nifti-bad-sform"):
        read_nifti(save(tmp_path / "a.nii.gz", raw))
    seconds = time.perf_counter() - start
    figure("N17", "time to refuse", seconds, limit=1, unit="s")
    assert seconds < 1


def test_n14_pipe_and_hostile_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    with refused("file-unreadable", "folder or device"):
        read_nifti(tmp_path / "a.nii.gz")
    with refused("file-unreadable", "NUL"):
        read_nifti(tmp_path / "a\0.nii.gz")
