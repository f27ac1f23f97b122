"""What is handed to a writer: cases with their volumes, and what the dataset says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sparseg.volumes.volume import Volume

Split = Literal["training", "test"]


@dataclass(frozen=True)
class WrittenCase:
    """One case to write.

    Attributes:
        name: Unique in the dataset, made of letters, digits, `._-` and spaces.
        image: `[C,H,W,D]`; int16 stays int16, everything else becomes float32 (DICOM: rounded to int16).
        labels: `[1,H,W,D]` ids on the image's grid, or None.
        subject: The patient; empty: the name.
        split: Side of the split.
        fold: Fold in which a training case validates, or None.
    """

    name: str
    image: Volume
    labels: Volume | None
    subject: str = ""
    split: Split = "training"
    fold: int | None = None


@dataclass(frozen=True)
class Header:
    """What a dataset says of itself.

    Attributes:
        name: Title.
        channels: Name of each image channel, in order.
        labels: Id -> name; 0 is the background.
        regions: Name -> ids of overlapping regions, in output order.
        synthetic: How the cases were made, if they are not real; written wherever a layout has room for it.
        target: Final folder; volumes are written to a temporary one that is renamed.
        file_ending: Suffix of volume files.
        absolute: Whether lists hold absolute paths.
    """

    name: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    synthetic: str = ""
    target: Path = Path()
    file_ending: str = ".nii.gz"
    absolute: bool = False

    @property
    def description(self) -> str:
        """One sentence for README and description fields."""
        return f"synthetic: {self.synthetic}" if self.synthetic else "written by sparseg"


@dataclass(frozen=True)
class Entry:
    """A case whose volumes are on disk.

    Attributes:
        name: As in `WrittenCase`.
        split: As in `WrittenCase`.
        subject: As in `WrittenCase`.
        fold: As in `WrittenCase`.
        images: Image files relative to the dataset folder, one per channel or one for all.
        label: Label file relative to the dataset folder, or None.
    """

    name: str
    split: Split
    subject: str
    fold: int | None
    images: tuple[str, ...]
    label: str | None
