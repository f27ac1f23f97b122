"""Arrays on disk that give out boxes of voxels quickly: blosc2 frames, opened where they are first read."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.errors import DatasetError
from sparseg.shapes import Triple

# LZ4HC at level 5 with byte shuffling: a third of the raw size, and nothing measured reads clearly faster
# (benchmarks/2026-11-22-loader.json). Level 9 saves 4 % of that for four to seven times the writing.
_LEVEL = 5
_BLOCK_EDGE = 32
# Every open array holds a file descriptor, of which a process commonly has 1024.
_MAX_OPEN = 64
_MAX_LOCATION_FILES = 32
FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class CachedArray:
    """An array `[C,H,W,D]` on disk; slicing reads and unpacks only the blocks concerned.

    Can be pickled and used in forked processes and threads: each opens the file itself.

    Attributes:
        path: The .b2nd file.
        shape: (C, H, W, D).
        dtype: As stored.
    """

    path: Path
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of axes, four."""
        return len(self.shape)

    def __getitem__(self, box: Any) -> np.ndarray:
        """Read a box given by slices, `...` or numbers, as numpy does.

        Raises:
            DatasetError: the file cannot be read or unpacked.
        """
        try:
            result: np.ndarray = _open(str(self.path), os.getpid(), threading.get_ident())[box]
        except (OSError, RuntimeError, ValueError) as error:
            raise unreadable(self.path, error) from error
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array in memory, for `numpy.asarray`; always a copy."""
        if copy is False:
            raise ValueError("an array on disk cannot be taken over without a copy")
        whole = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)


def image_array(image: np.ndarray) -> np.ndarray:
    """Return the image in the type it is stored in: float16, or float32 where a value is beyond float16."""
    fits = float(np.abs(image).max(initial=0)) <= FLOAT16_MAX
    return image.astype(np.float16 if fits else np.float32)


def label_array(labels: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    """Return class indices in place of ids: the position of each id in `ids`.

    The type depends on `ids` alone, so that it is the same for all cases: uint8 up to 256 classes, then int16
    or int32.

    Args:
        labels: `[1,H,W,D]` integers, all among `ids`.
        ids: Ascending, 0 first.
    """
    table = np.zeros(ids[-1] + 1, label_dtype(len(ids)))
    table[list(ids)] = np.arange(len(ids))
    classes: np.ndarray = table[labels]
    return classes


def label_dtype(num_classes: int) -> np.dtype[Any]:
    """Smallest of uint8, int16 and int32 that holds every class index."""
    kinds = (np.uint8, np.int16, np.int32)
    return np.dtype(next(kind for kind in kinds if num_classes - 1 <= np.iinfo(kind).max))


def write_array(path: Path, array: np.ndarray, chunk: Triple) -> None:
    """Write `[C,H,W,D]`; equal arrays with equal chunks give equal bytes.

    Args:
        path: New file.
        array: What to store.
        chunk: Voxels per spatial axis that are commonly read at once; cut off at the volume.
    """
    import blosc2

    edges = [min(edge, size) for edge, size in zip(chunk, array.shape[1:], strict=True)]
    parameters = blosc2.CParams(
        codec=blosc2.Codec.LZ4HC,
        clevel=_LEVEL,
        filters=[blosc2.Filter.SHUFFLE],
        typesize=array.dtype.itemsize,
        # With several threads blocks lie in the file in the order in which they were finished.
        nthreads=1,
    )
    blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(1, *edges),
        blocks=(1, *map(block_edge, edges)),
        urlpath=str(path),
        mode="w",
        contiguous=True,
        cparams=parameters,
        dparams=blosc2.DParams(nthreads=1),
    )


def block_edge(chunk_edge: int) -> int:
    """Edge of the blocks, unpacked as a whole: near 32 and dividing the chunk into equal parts."""
    return -(-chunk_edge // max(1, round(chunk_edge / _BLOCK_EDGE)))


def read_whole(path: Path) -> np.ndarray:
    """Read a file of `write_array` anew from the disk.

    Raises:
        DatasetError: it cannot be read or unpacked.
    """
    import blosc2

    try:
        whole: np.ndarray = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))[...]
    except (OSError, RuntimeError, ValueError) as error:
        raise unreadable(path, error) from error
    return whole


def read_locations(path: Path, counts: dict[int, int]) -> dict[int, np.ndarray]:
    """Read flat voxel positions, uint32, of each class.

    Args:
        path: All classes behind one another, ascending.
        counts: Positions per class.

    Raises:
        DatasetError: the file cannot be read or has another number of positions.
    """
    try:
        flat = _load(str(path))
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(path, error) from error
    if flat.shape != (sum(counts.values()),):
        raise unreadable(path, ValueError(f"{flat.shape} positions"))
    result, start = {}, 0
    for label, count in sorted(counts.items()):
        result[label] = flat[start : start + count]
        start += count
    return result


def pick_locations(labels: np.ndarray, most: int) -> dict[int, np.ndarray]:
    """Return flat positions, uint32 ascending, of each class but 0, at most `most` evenly picked ones."""
    flat = labels.reshape(-1)
    counts = np.bincount(flat)
    # One stable sort instead of one pass per class: a hundred classes are common.
    inside = np.flatnonzero(flat)
    order = inside[np.argsort(flat[inside], kind="stable")].astype(np.uint32)
    picked, start = {}, 0
    for label in np.flatnonzero(counts[1:]) + 1:
        number = int(counts[label])
        found = order[start : start + number]
        start += number
        picked[int(label)] = found if number <= most else found[np.arange(most) * number // most]
    return picked


def forget_open_files() -> None:
    """Close what this process holds open, so that replaced files are opened anew."""
    _open.cache_clear()
    _load.cache_clear()


def unreadable(path: Path, error: Exception) -> DatasetError:
    """The error for a damaged cache file."""
    return DatasetError(
        "a cached case must be readable",
        received=str(error) or type(error).__name__,
        remedy="start again: damaged entries are found and built anew; sparseg has only copies here",
        where=path,
        code="cache-corrupt",
    )


@lru_cache(maxsize=_MAX_OPEN)
def _open(path: str, _process: int, _thread: int) -> Any:
    """An opened array; the unpacker behind it must not be shared between processes or threads."""
    import blosc2

    # Mapped, a file stays readable when another process replaces the entry.
    return blosc2.open(path, mmap_mode="r", dparams=blosc2.DParams(nthreads=1))


@lru_cache(maxsize=_MAX_LOCATION_FILES)
def _load(path: str) -> np.ndarray:
    flat: np.ndarray = np.load(path, allow_pickle=False)
    flat.setflags(write=False)
    return flat
