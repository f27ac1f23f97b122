"""Reading for pictures: what the strict readers refuse is shown where it can be, every liberty is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.load import load_labels
from sparseg.datasets.nonfinite import NONFINITE_MARK, without_warnings
from sparseg.errors import SparsegError
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.volume import Volume

# End of an error's code -> options that get past it, and what the caption says then.
_LIBERTIES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("nonfinite", {"nonfinite": NONFINITE_MARK}, "voxels that are not finite are magenta"),
    ("disagree", {"affine_choice": "sform"}, "the header contradicts itself: shown as its sform says"),
    ("no-orientation", {"assume_orientation": "RAS"}, "the header has no orientation: shown as if RAS"),
)


@dataclass(frozen=True)
class Shown:
    """A file as far as it can be shown.

    Attributes:
        volume: Its voxels, None if it cannot be read.
        notes: Liberties taken, or why it cannot be read.
    """

    volume: Volume | None
    notes: tuple[str, ...] = ()


def show_image(path: Path, series_uid: str | None = None) -> Shown:
    """Read an image; `NONFINITE_MARK` stands where it is not finite."""
    start = {} if series_uid is None else {"series_uid": series_uid}
    return _read(lambda **options: read_volume(path, **options), start)


def show_labels(case: Case, dataset: Dataset, image: Volume | None) -> list[Shown]:
    """Read the label files of a case as int32 ids, each on its own grid.

    A label map is one volume. Of masks there is one volume each; their voxels have the id of their structure.
    """
    ids = {name: label_id for label_id, name in dataset.labels.items()}
    if case.label is not None:
        return [_show_label_file(case, dataset, image)]
    shown = []
    for name, path in case.masks:
        mask = _read(lambda **options: read_labels(path, **options), {})  # noqa: B023
        if mask.volume is not None:
            array = (mask.volume.array > 0) * np.int32(ids.get(name, 1))
            mask = Shown(Volume(array, mask.volume.affine, mask.volume.source), mask.notes)
        shown.append(mask)
    return shown


def _show_label_file(case: Case, dataset: Dataset, image: Volume | None) -> Shown:
    path = case.label_files[0]
    shown = _read(lambda **options: read_labels(path, **options), {})
    if shown.volume is not None:
        return shown
    # Fractional or negative ids: the nearest whole ones still show where they lie.
    numbers = _read(lambda **options: read_volume(path, **options), {})
    if numbers.volume is not None and numbers.volume.num_channels == 1:
        values = numbers.volume.array
        values = np.where(values >= NONFINITE_MARK, 0, np.clip(np.rint(values), -(2**30), 2**30))
        volume = Volume(values.astype(np.int32), numbers.volume.affine, numbers.volume.source)
        return Shown(volume, (*numbers.notes, "ids are rounded for the picture"))
    if image is not None:
        try:
            return Shown(load_labels(case, dataset, image))
        except SparsegError:
            # The reason of the plain reading, below, stands.
            pass
    return shown


def _read(read: Callable[..., Volume], options: dict[str, Any]) -> Shown:
    """Read, taking one liberty after the other as the errors ask for them."""
    notes: tuple[str, ...] = ()
    with without_warnings():
        while True:
            try:
                return Shown(read(**options), notes)
            except SparsegError as error:
                liberty = next((entry for entry in _LIBERTIES if error.code.endswith(entry[0])), None)
                if liberty is None or liberty[1].keys() <= options.keys():
                    return Shown(None, (_reason(error),))
                options, notes = {**options, **liberty[1]}, (*notes, liberty[2])


def _reason(error: SparsegError) -> str:
    return error.rule if error.received is None else f"{error.rule}; received {error.received}"
