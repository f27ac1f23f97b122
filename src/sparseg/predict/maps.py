"""Probabilities and uncertainty on the original grid, beside the labels, without ever holding all classes.

While logits are decided slab by slab, a recorder turns them into bytes and puts these into a nameless
temporary file; the maps are then put together from it one class after the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from sparseg.errors import InputError, ResourceError
from sparseg.preprocessing.orientation import undo_reorient
from sparseg.preprocessing.record import PreprocessRecord
from sparseg.preprocessing.restore import crop_box
from sparseg.volumes.nifti_maps import FULL, write_maps

MapKind = Literal["probabilities", "uncertainty"]
KINDS: tuple[MapKind, ...] = ("probabilities", "uncertainty")
FOLDER = "maps"
_TILE = 32


class MapRecorder:
    """Collects maps of one case; a context manager, since it holds a temporary file.

    Args:
        kinds: Which maps.
        record: Grids of the case.
        labels: Id -> name of the model.
        regions: Overlapping regions of the model, or none.

    Raises:
        ResourceError: no temporary file can be made.
    """

    def __init__(
        self,
        kinds: Sequence[MapKind],
        record: PreprocessRecord,
        labels: Mapping[int, str],
        regions: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._record, self._exclusive = record, not regions
        classes = tuple(regions) if regions else tuple(labels[label] for label in sorted(labels))
        names: dict[MapKind, tuple[str, ...]] = {"probabilities": classes, "uncertainty": ("uncertainty",)}
        self._names = {kind: names[kind] for kind in KINDS if kind in kinds}
        self._num_maps = sum(len(found) for found in self._names.values())
        with _room_for(self._num_maps * prod(record.crop_shape)):
            self._file = tempfile.TemporaryFile(prefix="sparseg-maps-")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def on_slab(self, first: int, logits: Tensor) -> None:
        """Take in logits `[K, s, W, D]` of the planes of the crop from `first` on; see `finish_labels`."""
        values = map_values(logits, self._names, exclusive=self._exclusive)
        height, width, depth = self._record.crop_shape
        with _room_for(self._num_maps * height * width * depth):
            self._file.seek(first * self._num_maps * width * depth)
            # Plane by plane, each with all its maps: the file is written from its start to its end.
            self._file.write(values.transpose(0, 1).contiguous().numpy().data)

    def write(self, output: Path, affine: np.ndarray) -> dict[str, str]:
        """Write the maps of a case beside its label file.

        Args:
            output: The label file.
            affine: 4x4 of the original grid, voxel -> RAS mm.

        Returns:
            Kind -> path relative to the folder of the label file.

        Raises:
            VolumeError: the folder cannot be written to.
            InputError: a link stands in the place of the folder of the maps.
        """
        paths, place = map_paths(output), 0
        _require_inside(output.parent / FOLDER)
        for kind, names in self._names.items():
            paths[kind].parent.mkdir(parents=True, exist_ok=True)
            numbers = range(place, place + len(names))
            maps = (self._on_original_grid(number, kind) for number in numbers)
            write_maps(paths[kind], maps, names, self._record.original_shape, affine)
            place += len(names)
        return {kind: f"{FOLDER}/{paths[kind].name}" for kind in self._names}

    def _on_original_grid(self, number: int, kind: MapKind) -> np.ndarray:
        """One map, uint8 `[H0, W0, D0]`; outside the crop all is background, for certain."""
        is_background = self._exclusive and kind == "probabilities" and number == 0
        full = np.full(self._record.reoriented_shape, FULL if is_background else 0, dtype=np.uint8)
        full[crop_box(self._record)] = self._map(number)
        original: np.ndarray = undo_reorient(full[None], self._record.permutation, self._record.flips)[0]
        return original

    def _map(self, number: int) -> np.ndarray:
        height, width, depth = self._record.crop_shape
        planes = np.empty((height, width, depth), dtype=np.uint8)
        for index, plane in enumerate(planes):
            self._file.seek((index * self._num_maps + number) * width * depth)
            if self._file.readinto(plane.data) != plane.size:
                raise _no_room("the file is too short", self._num_maps * planes.size)
        return planes


def map_values(logits: Tensor, kinds: Collection[MapKind], *, exclusive: bool) -> Tensor:
    """Logits as bytes, 255 for 1.

    Probabilities are the softmax over the classes, or the sigmoid of each region. The uncertainty is 1 less
    the probability of the decision: of the class decided for; with regions, of the decision (present or
    absent) that is the least sure one.

    Args:
        logits: `[K, s, W, D]`.
        kinds: Which maps.
        exclusive: Whether the K channels are classes, not regions.

    Returns:
        uint8 `[n, s, W, D]`: the K probabilities if asked for, then the uncertainty if asked for.
    """
    has_chance, has_doubt = ("probabilities" in kinds), ("uncertainty" in kinds)
    num_maps = has_chance * len(logits) + has_doubt
    found = torch.empty((num_maps, *logits.shape[1:]), dtype=torch.uint8)
    # Piece by piece, as 14 classes of 16 x 32 x 160 voxels fit a cache: three times as fast as all at once.
    for values, target in zip(_pieces(logits), _pieces(found), strict=True):
        chance, doubt = _softmax(values) if exclusive else _sigmoid(values)
        if has_chance:
            target[: len(logits)] = _as_bytes(chance)
        if has_doubt:
            target[-1] = _as_bytes(doubt)
    return found


def _pieces(values: Tensor) -> list[Tensor]:
    return [values[:, :, first : first + _TILE] for first in range(0, values.shape[2], _TILE)]


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities `[K, ...]` of exclusive classes, and 1 less the largest."""
    weights = (logits - logits.amax(dim=0)).exp_()
    # The largest weight is 1.
    largest = weights.sum(dim=0).reciprocal_()
    return weights.mul_(largest), 1 - largest


def _sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities `[K, ...]` of regions, and of the least sure one how far it is from sure."""
    chance = logits.sigmoid()
    return chance, torch.minimum(chance, 1 - chance).amax(dim=0)


def _as_bytes(share: Tensor) -> Tensor:
    return share.mul_(FULL).add_(0.5).to(torch.uint8)


def map_paths(output: Path) -> dict[MapKind, Path]:
    """Where the maps of a case lie, whether they are there or not.

    Args:
        output: Its label file; the case's name is what stands before the suffix of the format.
    """
    # In a folder of their own they are not taken for labels, nor bear the name of another case's labels.
    case = output.name
    for suffix in (".nii.gz", ".seg.nrrd", ".nii", ".dcm"):
        if case.lower().endswith(suffix):
            case = case[: -len(suffix)]
            break
    return {kind: output.parent / FOLDER / f"{case}_{kind}.nii.gz" for kind in KINDS}


@contextmanager
def removed_on_error(paths: Sequence[Path]) -> Iterator[None]:
    """Remove files if the block is left by an error: of one case there is everything, or nothing."""
    is_done = False
    try:
        yield
        is_done = True
    finally:
        if not is_done:
            for path in paths:
                path.unlink(missing_ok=True)


def recorder_for(
    kinds: Sequence[MapKind],
    record: PreprocessRecord,
    labels: Mapping[int, str],
    regions: Mapping[str, tuple[int, ...]],
) -> AbstractContextManager[MapRecorder | None]:
    """A `MapRecorder`, or nothing where no maps are wanted."""
    return MapRecorder(kinds, record, labels, regions) if kinds else nullcontext()


def _require_inside(folder: Path) -> None:
    if folder.is_symlink():
        raise InputError(
            "nothing is written outside the output folder",
            received="a link in the place of the folder of the maps",
            remedy="remove it, or choose another --out",
            where=folder,
            code="output-escapes",
        )


@contextmanager
def _room_for(num_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _no_room(error.strerror or type(error).__name__, num_bytes) from error


def _no_room(received: str, num_bytes: int) -> ResourceError:
    return ResourceError(
        "the maps of a case must fit into a temporary file until they are written",
        received=f"{received} for {num_bytes / 2**30:.2f} GiB",
        remedy="set TMPDIR to a folder with more room, or leave --save out",
        where=tempfile.gettempdir(),
        code="maps-file",
    )
