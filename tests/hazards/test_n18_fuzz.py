"""Row N18: whatever a header says, the reader refuses with a typed error or agrees with nibabel."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseg.errors import InputError
from sparseg.volumes.nifti import read_nifti

from .figures import Figure, rounds
from .header_fuzz import kept_seeds, outcome
from .nifti_faults import nifti_bytes, patched, save

_SMALL = np.random.default_rng(4).integers(0, 9, (4, 3, 2)).astype(np.int16)
# The values that have broken readers, and any other.
_WHOLE = st.sampled_from([0, 1, 2, 3, 4, -1, 7, 8, 16, 64, 512, 2048, 32767, -32768]) | st.integers(
    -32768, 32767
)
_REAL = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 352.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")]
)


def _edits(
    whole: dict[int, str], real: dict[int, str], single_bytes: list[int]
) -> st.SearchStrategy[list[tuple[int, str, float]]]:
    """Return lists of edits (offset, format, value) of the fields a reader acts on."""
    width = 32 if "f" in real.values() else 64
    fields = [
        st.tuples(st.sampled_from(sorted(whole)), _WHOLE).map(
            lambda edit: (edit[0], whole[edit[0]], edit[1])
        ),
        st.tuples(st.sampled_from(sorted(real)), _REAL | st.floats(width=width)).map(
            lambda edit: (edit[0], real[edit[0]], edit[1])
        ),
        st.tuples(st.sampled_from(single_bytes), st.just("B"), st.integers(0, 255)),
    ]
    return st.lists(st.one_of(fields), min_size=1, max_size=5)


_NIFTI1 = _edits(
    dict.fromkeys([*range(40, 56, 2), 70, 72, 252, 254], "h"),
    dict.fromkeys([*range(76, 120, 4), *range(256, 328, 4)], "f"),
    [0, 1, 2, 3, 123, 344, 345, 346, 347],
)
_NIFTI2 = _edits(
    dict.fromkeys([12, 14], "h")
    | dict.fromkeys(range(16, 80, 8), "q")
    | {168: "q", 344: "i", 348: "i", 500: "i"},
    dict.fromkeys([*range(104, 168, 8), 176, 184, *range(352, 496, 8)], "d"),
    [*range(12), 500],
)
_SETTINGS = settings(
    max_examples=10 * rounds(20),
    deadline=1000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@_SETTINGS
@given(edits=_NIFTI1)
def test_n18_header_fuzz(tmp_path: Path, edits: list[tuple[int, str, float]]) -> None:
    _check(tmp_path / "fuzz.nii", nifti_bytes(_SMALL), edits, unit_at=123, offset_at=(108, "f", 352))


@_SETTINGS
@given(edits=_NIFTI2)
def test_n18_header_fuzz_of_nifti2(tmp_path: Path, edits: list[tuple[int, str, float]]) -> None:
    _check(
        tmp_path / "fuzz.nii", nifti_bytes(_SMALL, version=2), edits, unit_at=500, offset_at=(168, "q", 544)
    )


def _check(
    path: Path,
    raw: bytes,
    edits: list[tuple[int, str, float]],
    *,
    unit_at: int,
    offset_at: tuple[int, str, int],
) -> None:
    for offset, fmt, value in edits:
        raw = patched(raw, offset, fmt, value)
    try:
        volume = read_nifti(save(path, raw))
    except InputError:
        return
    # A vox_offset of 0 means "after the header" here as in nifti1_io; nibabel takes the header for voxels.
    if struct.unpack_from("<" + offset_at[1], raw, offset_at[0])[0] == 0:
        raw = patched(raw, *offset_at)
    image = nib.load(save(path, raw))
    peer = image.get_fdata(dtype=np.float32)
    unit_mm = {1: 1000.0, 3: 0.001}.get(raw[unit_at] & 7, 1.0)
    assert np.isfinite(volume.array).all()
    np.testing.assert_array_equal(volume.array[0], peer.reshape(volume.shape, order="F"))
    np.testing.assert_allclose(volume.affine[:3], image.affine[:3] * unit_mm, rtol=1e-5, atol=1e-3)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Break off what hangs in Python; needs the main thread and POSIX."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still at it after {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # nibabel's, of numbers beyond float32
def test_n18_generated_headers(tmp_path: Path, figure: Figure) -> None:
    """500 files a round; a seed that ever found something is kept in fuzz_seeds.json."""
    number = 500 * rounds(1)
    faults = {}
    for seed in range(number):
        try:
            with time_limit(5.0):
                outcome(seed, tmp_path)
        except Exception as error:
            faults[seed] = f"{type(error).__name__}: {error}"
    figure("N18", "hangs, untyped errors, bad accepts", len(faults), of=number)
    assert faults == {}


def test_n18_kept_seeds_end_as_they_did(tmp_path: Path) -> None:
    """Two seeds or so for each way in which a header can be refused, and for none."""
    kept = kept_seeds()
    assert len(kept) >= 25
    found = {seed: outcome(seed, tmp_path) for seeds in kept.values() for seed in seeds}
    assert found == {seed: code for code, seeds in kept.items() for seed in seeds}
