"""Row N18: whatever a header says, the reader refuses with a typed error or agrees with nibabel."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseg.errors import InputError
from sparseg.volumes.nifti import read_nifti

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
    max_examples=200,
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
