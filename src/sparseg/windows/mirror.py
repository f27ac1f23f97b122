"""Mirroring at test time: the mean of what a network says about a window and its mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from torch import Tensor

from sparseg.errors import ConfigError


def mirrored(network: Callable[[Tensor], Tensor], axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Wrap a network so that it sees every window in all mirror images along `axes`.

    It runs 2^n times for n axes. The *logits* are averaged, not the probabilities: the mean stays a logit
    that can be interpolated, and one sure vote counts for more than several unsure ones. A network that was
    not trained with flips gets worse by it, and one that tells left from right names the wrong side when
    mirrored along the left-right axis.

    Args:
        network: `[B, C, H, W, D] -> [B, K, H, W, D]`.
        axes: Voxel axes to mirror, of 0, 1 and 2 (H, W, D); none returns the network itself.

    Raises:
        ConfigError: an axis that does not exist, or one twice.
    """
    if len(set(axes)) != len(axes) or not set(axes) <= {0, 1, 2}:
        raise ConfigError(
            "mirrored axes must be different ones of 0, 1 and 2",
            received=tuple(axes),
            remedy="e.g. (1, 2)",
            where="axes",
        )
    if not axes:
        return network
    images = [
        tuple(2 + axis for axis in chosen)
        for number in range(1, len(axes) + 1)
        for chosen in combinations(sorted(axes), number)
    ]

    def mean(windows: Tensor) -> Tensor:
        # A network may hand out an array it keeps, and half precision must not add up: hence a new float32.
        logits = network(windows).float().clone()
        for dims in images:
            logits += network(windows.flip(dims)).flip(dims)
        return logits.div_(1 + len(images))

    return mean
