"""What a case ran into that did not stop it, as codes and sentences for its row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparseg.volumes.volume import Volume

CONSTANT, MEMORY = "image-constant", "out-of-memory"


@dataclass(frozen=True)
class CaseWarning:
    """One thing that whoever looks at the labels should know.

    Attributes:
        code: For programs; `image-constant` as in `sparseg check`, or `out-of-memory`.
        message: For people.
    """

    code: str
    message: str


def image_warnings(image: Volume, channels: Sequence[str]) -> Iterator[CaseWarning]:
    """Yield what is odd about an image `[C, H, W, D]` that can be segmented all the same.

    Args:
        image: On its own grid, in its own units.
        channels: Names of its channels.
    """
    for name, values in zip(channels, image.array, strict=True):
        lowest = values.min()
        if lowest == values.max():
            yield CaseWarning(
                CONSTANT,
                f"{name} is {lowest:g} everywhere; labels of an image that shows nothing mean nothing: "
                "export it again",
            )


def memory_warning(change: str) -> CaseWarning:
    """What a lack of memory changed, in the words of `WindowRunner`."""
    return CaseWarning(MEMORY, change)
