"""Files that several layouts share: volumes by suffix, text, and the declaration `sparseg.yaml`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.config import dump_yaml
from sparseg.datasets.declaration import FILE
from sparseg.datasets.writers.written import Entry, Header, WrittenCase
from sparseg.errors import LabelError
from sparseg.volumes.itk import write_itk
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.volume import Volume

NIFTI_ENDINGS = (".nii.gz", ".nii")
ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".mha")
_MAX_ID = 65535


def write_image_file(path: Path, volume: Volume) -> None:
    """Write an image `[C,H,W,D]`, all its channels in one file, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(NIFTI_ENDINGS):
        write_image(path, volume)
        return
    kept = volume.array if volume.array.dtype == np.int16 else volume.array.astype(np.float32)
    write_itk(path, Volume(kept, volume.affine, volume.source))


def write_label_file(path: Path, labels: Volume, names: dict[int, str]) -> None:
    """Write a label map `[1,H,W,D]` in the format of the suffix; NIfTI keeps the names of the ids too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = compact_ids(labels, path)
    if path.name.endswith(NIFTI_ENDINGS):
        write_label_map(path, ids, labels.affine, label_names=names)
    else:
        write_itk(path, Volume(ids[None], labels.affine, labels.source))


def compact_ids(labels: Volume, where: object) -> np.ndarray:
    """Return the ids `[H,W,D]` as uint8, or as uint16 if one exceeds 255.

    Raises:
        LabelError: an id below 0, above 65535 or fractional.
    """
    ids = labels.array[0]
    low, high = float(ids.min()), float(ids.max())
    if low < 0 or high > _MAX_ID or (ids.dtype.kind == "f" and (ids != np.rint(ids)).any()):
        raise LabelError(
            f"label ids must be whole numbers from 0 to {_MAX_ID}",
            received=f"{ids.dtype} from {low:g} to {high:g}",
            remedy="renumber the labels",
            where=where,
            code="label-ids",
        )
    compact: np.ndarray = ids.astype(np.uint8 if high <= 255 else np.uint16)
    return compact


def channel_volumes(image: Volume) -> list[Volume]:
    """Return one volume `[1,H,W,D]` per channel."""
    return [Volume(channel[None], image.affine, image.source) for channel in image.array]


def write_entries(
    root: Path,
    cases: Iterable[WrittenCase],
    header: Header,
    image_paths: Callable[[WrittenCase], list[str]],
    label_path: Callable[[WrittenCase], str],
) -> list[Entry]:
    """Write the volumes of all cases, one case in memory at a time, and return where they lie.

    Args:
        root: Folder to write to.
        cases: Read once.
        header: Gives the names of the labels.
        image_paths: Relative paths of a case's image files: one for all channels, or one per channel.
        label_path: Relative path of a case's label file.
    """
    entries = []
    for case in cases:
        paths = image_paths(case)
        volumes = [case.image] if len(paths) == 1 else channel_volumes(case.image)
        for path, volume in zip(paths, volumes, strict=True):
            write_image_file(root / path, volume)
        label = None if case.labels is None else label_path(case)
        if case.labels is not None and label is not None:
            write_label_file(root / label, case.labels, header.labels)
        subject = case.subject or case.name
        entries.append(Entry(case.name, case.split, subject, case.fold, tuple(paths), label))
    return entries


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text that ends in a line end, with `\\n` on every system."""
    path.write_bytes((text.rstrip("\n") + "\n").encode())


def write_declaration(root: Path, header: Header, *, labels: bool = True) -> None:
    """Write `sparseg.yaml`, for what a layout itself has no words for."""
    content: dict[str, Any] = {"name": header.name, "channels": list(header.channels)}
    if labels:
        content["labels"] = dict(header.labels)
        if header.regions:
            content["regions"] = {name: list(ids) for name, ids in header.regions.items()}
    write_text(root / FILE, dump_yaml(content, sort_keys=False, allow_unicode=True))


def write_readme(root: Path, header: Header, name: str = "README.txt") -> None:
    """Write title and description."""
    write_text(root / name, f"{header.name}\n\n{header.description}")
