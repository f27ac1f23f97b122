"""Label ids are exact or refused, whatever type they are stored as."""

from __future__ import annotations

import numpy as np
import pytest

from sparseg.errors import LabelError
from sparseg.volumes.values import label_values


def stored(value: float, dtype: str) -> np.ndarray:
    array = np.zeros((1, 3, 3, 3), dtype)
    array[0, 1, 2, 0] = value
    return array


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(2**31 - 128, "f4"), (2**31 - 1, "f8"), (2**31 - 1, "i4"), (2**31 - 1, "u4"), (2**31 - 1, "i8")],
)
def test_the_largest_ids(value: int, dtype: str) -> None:
    ids = label_values(stored(value, dtype), where="a.nii")
    assert (ids.dtype, int(ids.max()), int(ids.min())) == (np.int32, value, 0)


@pytest.mark.parametrize("dtype", ["f4", "f8", "u4", "i8", "u8"])
def test_one_more_is_refused(dtype: str) -> None:
    with pytest.raises(LabelError) as info:
        label_values(stored(2**31, dtype), where="a.nii")
    assert info.value.code == "label-ids"
    assert "(1 voxels)" in str(info.value)
