"""Shape arithmetic: exact counts, and a typed refusal of everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparseg.errors import ShapeError
from sparseg.shapes import as_triple, num_tokens, token_grid


@pytest.mark.parametrize(
    ("value", "expected"), [(96, (96, 96, 96)), ((1, 2, 3), (1, 2, 3)), ([8, 8.0, np.int64(4)], (8, 8, 4))]
)
def test_as_triple(value: Any, expected: tuple[int, int, int]) -> None:
    assert as_triple(value, name="size") == expected


@pytest.mark.parametrize(
    "value",
    [0, -1, (), (8,), (8, 8), (8, 8, 8, 8), (8, 0, 8), (8, 8, -8), (8.5, 8, 8), (8, None, 8), "8x8"],
)
def test_as_triple_refuses(value: Any) -> None:
    with pytest.raises(ShapeError, match=r"^roi must be one or three positive integers; received"):
        as_triple(value, name="roi")


@pytest.mark.parametrize(
    ("size", "patch", "grid", "count"),
    [
        ((96, 96, 96), (8, 8, 8), (12, 12, 12), 1728),
        ((128, 128, 128), (8, 8, 8), (16, 16, 16), 4096),
        ((24, 40, 32), (8, 8, 8), (3, 5, 4), 60),
        ((32, 16, 8), (8, 8, 4), (4, 2, 2), 16),
    ],
)
def test_token_grid(size: Any, patch: Any, grid: Any, count: int) -> None:
    assert token_grid(size, patch) == grid
    assert num_tokens(grid) == count


@pytest.mark.parametrize("size", [(96, 96, 97), (95, 96, 96), (4, 8, 8), (0, 8, 8)])
def test_token_grid_refuses_a_rest(size: Any) -> None:
    with pytest.raises(ShapeError):
        token_grid(size, (8, 8, 8))
