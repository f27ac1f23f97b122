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

from .nifti_faults import nifti_bytes, save

_SMALL = np.random.default_rng(4).integers(0, 9, (4, 3, 2)).astype(np.int16)
_RAW = nifti_bytes(_SMALL)
# The fields a reader acts on, with the values that have broken readers, and any other.
_SHORTS = st.sampled_from([0, 1, 2, 3, 4, -1, 7, 8, 16, 64, 512, 2048, 32767, -32768]) | st.integers(
    -32768, 32767
)
_FLOATS = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 352.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")]
) | st.floats(width=32)
_EDITS = st.lists(
    st.tuples(st.sampled_from([*range(40, 56, 2), 70, 72, 252, 254]), st.just("<h"), _SHORTS)
    | st.tuples(st.sampled_from([*range(76, 120, 4), *range(256, 328, 4)]), st.just("<f"), _FLOATS)
    | st.tuples(st.sampled_from([0, 1, 2, 3, 123, 344, 345, 346, 347]), st.just("<B"), st.integers(0, 255)),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=300,
    deadline=1000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=_EDITS)
def test_n18_header_fuzz(tmp_path: Path, edits: list[tuple[int, str, float]]) -> None:
    raw = bytearray(_RAW)
    for offset, fmt, value in edits:
        struct.pack_into(fmt, raw, offset, value)
    path = save(tmp_path / "fuzz.nii", bytes(raw))
    try:
        volume = read_nifti(path)
    except InputError:
        return
    # A vox_offset of 0 means "after the header" here as in nifti1_io; nibabel takes the header for voxels.
    if struct.unpack_from("<f", raw, 108)[0] == 0:
        struct.pack_into("<f", raw, 108, 352)
    image = nib.load(save(path, bytes(raw)))
    peer = image.get_fdata(dtype=np.float32)
    unit_mm = {1: 1000.0, 3: 0.001}.get(raw[123] & 7, 1.0)
    assert np.isfinite(volume.array).all()
    np.testing.assert_array_equal(volume.array[0], peer.reshape(volume.shape, order="F"))
    np.testing.assert_allclose(volume.affine[:3], image.affine[:3] * unit_mm, rtol=1e-5, atol=1e-3)
