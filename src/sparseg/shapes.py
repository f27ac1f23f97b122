"""Shape legend of the whole package, and the arithmetic that goes with it.

B batch · C input channels · K classes (background included) · H W D voxel axes · h w d token grid ·
L = h·w·d patch tokens of a full grid · n tokens present at a stage · E embedding width · p patch edge in
voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from sparseg.errors import ShapeError

Triple = tuple[int, int, int]


def as_triple(value: int | Sequence[int], *, name: str) -> Triple:
    """Return `value` as three positive integers; a single integer is repeated.

    Raises:
        ShapeError: not one or three positive integers.
    """
    try:
        given = (value,) * 3 if isinstance(value, int) else tuple(value)
        values = tuple(int(v) for v in given)
    except (TypeError, ValueError, OverflowError):
        given = values = ()
    if len(values) != 3 or any(v < 1 for v in values) or values != given:
        raise ShapeError(
            f"{name} must be one or three positive integers",
            received=value,
            remedy=f"set {name} like 96 or 96,96,64",
        )
    return (values[0], values[1], values[2])


def token_grid(size: Sequence[int], patch_size: Triple) -> Triple:
    """Return the token grid (h, w, d) of a window of `size` voxels (H, W, D).

    Raises:
        ShapeError: an edge of the window is not a positive multiple of the patch edge.
    """
    size = as_triple(size, name="window size")
    if any(s % p for s, p in zip(size, patch_size, strict=True)):
        raise ShapeError(
            f"every window edge must be a multiple of the patch edge {patch_size}",
            received=size,
            remedy="pad or crop the image, or choose another roi_size",
        )
    return (size[0] // patch_size[0], size[1] // patch_size[1], size[2] // patch_size[2])


def num_tokens(grid: Triple) -> int:
    """Return L, the number of patch tokens of a token grid."""
    return prod(grid)
