"""Prepared cases on disk, so that training starts at once and reads only the crops it needs.

An entry is named by what it was made from: voxels, labels and place of the case, the preprocessing, and the
label ids. The same case in another layout or under another name is the same entry; whatever changes a value
is another one, so nothing ever needs to be marked as outdated. See docs/explanation/cache.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

from sparseg.datasets.cache_arrays import FLOAT16_MAX, label_dtype
from sparseg.datasets.cache_entry import (
    FORMAT,
    MAX_LOCATIONS,
    CachedCase,
    CaseRecord,
    read_entry,
    write_entry,
)
from sparseg.datasets.cache_store import (
    CacheSize,
    cache_size,
    clear_cache,
    discard,
    entry_folder,
    locked,
    new_part,
    publish,
    sweep,
)
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts, content_key_of
from sparseg.datasets.load import load_case
from sparseg.datasets.parallel import default_workers, map_items
from sparseg.datasets.sample_archive import default_cache
from sparseg.errors import DatasetError
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.preprocessing.pipeline import SAME_SPACING, prepare
from sparseg.preprocessing.resample import num_voxels
from sparseg.shapes import Triple

__all__ = [
    "CacheSize",
    "CachedCase",
    "build_cache",
    "cache_size",
    "case_key",
    "class_ids",
    "clear_cache",
    "default_folder",
    "estimate_bytes",
]

logger = logging.getLogger("sparseg")
# Frame headers and offsets of blocks that do not compress: far below this share.
_OVERHEAD = 1.02
_RECORD_BYTES = 16 * 1024


class _Order(NamedTuple):
    """A case to build."""

    case: Case
    facts: CaseFacts
    key: str


def default_folder() -> Path:
    """Return `cases` in the user's cache folder."""
    return default_cache() / "cases"


def class_ids(dataset: Dataset) -> tuple[int, ...]:
    """Return the label id of each class index: gaps vanish; with regions every id stays as it is."""
    if dataset.regions:
        return tuple(range(max(dataset.labels) + 1))
    return tuple(sorted(dataset.labels))


def case_key(facts: CaseFacts, preprocess: PreprocessConfig, ids: tuple[int, ...]) -> str:
    """Return the name of a case's entry: a SHA-256 of all that its content depends on.

    Args:
        facts: What the case measures.
        preprocess: How it is prepared.
        ids: Label id of each class index (`class_ids`).
    """
    parts = [FORMAT, facts.content_key, preprocess.model_dump(mode="json"), list(ids)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def estimate_bytes(facts: CaseFacts, preprocess: PreprocessConfig) -> int:
    """Return an upper bound of the bytes of a case's entry: as if nothing could be compressed.

    Args:
        facts: What the case measures.
        preprocess: Spacing and crop.
    """
    is_ct = isinstance(preprocess.intensity, CTIntensity)
    box = facts.body_shape if is_ct else facts.nonzero_shape
    if not preprocess.foreground_crop or preprocess.foreground_threshold is not None:
        box = facts.shape
    voxels = 1
    for axis, spacing in enumerate(facts.spacing):
        margin = ceil(preprocess.margin_mm / spacing)
        edge = min(facts.shape[axis], box[axis] + 2 * margin)
        ratio = 1.0 if preprocess.spacing is None else preprocess.spacing[axis] / spacing
        voxels *= edge if abs(ratio - 1) <= SAME_SPACING else num_voxels(edge, ratio) + 1
    num_labels = len(facts.label_counts or {})
    label_bytes = label_dtype(max(facts.label_counts, default=0) + 1).itemsize if facts.label_counts else 0
    # A z-score that far out happens only where nearly all is constant.
    is_wide = not is_ct and any(
        max(abs(c.maximum - c.mean), abs(c.minimum - c.mean)) > c.deviation * FLOAT16_MAX / 16
        for c in facts.channels
    )
    image_bytes = len(facts.channels) * (4 if is_wide else 2)
    arrays = int(voxels * (image_bytes + label_bytes) * _OVERHEAD)
    return arrays + min(num_labels * MAX_LOCATIONS, voxels) * 4 + _RECORD_BYTES


def build_cache(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    preprocess: PreprocessConfig,
    *,
    cases: Sequence[Case],
    folder: Path,
    chunk: Triple,
    workers: int | None = None,
    verify: bool = True,
    on_size: Callable[[int, int, Path], None] = lambda *_: None,
    on_case: Callable[[str], None] = lambda _: None,
) -> list[CachedCase]:
    """Return the prepared cases, building those that are not there or damaged.

    Several processes may do this at once in one folder, and any of them may be killed.

    Args:
        dataset: Channels, labels and regions.
        facts: Of each of `cases`, in the same order.
        preprocess: How to prepare them.
        cases: What to prepare.
        folder: The cache, created if need be.
        chunk: Crop size in voxels that training will read; entries laid out for another one are used.
        workers: Processes; None takes all processors.
        verify: Compare the hashes of the files that are there, not only their sizes.
        on_size: Called before anything is written with the upper bound of the bytes to be written, the number
            of cases to build, and the folder.
        on_case: Called with a case's name when it is ready.

    Returns:
        One per case, in order.

    Raises:
        DatasetError: too little free space, a case that changed since it was measured, a disk that refuses.
        SparsegError: a case that cannot be used.
    """
    ids = class_ids(dataset)
    orders = [
        _Order(case, fact, case_key(fact, preprocess, ids)) for case, fact in zip(cases, facts, strict=True)
    ]
    sweep(folder)
    records = _find_ready(folder, [order.key for order in orders], verify=verify)
    missing = list({order.key: order for order in reversed(orders) if order.key not in records}.values())[
        ::-1
    ]
    num_bytes = sum(estimate_bytes(order.facts, preprocess) for order in missing)
    on_size(num_bytes, len(missing), folder)
    _require_space(folder, num_bytes)
    names: dict[str, list[str]] = {}
    for order in orders:
        names.setdefault(order.key, []).append(order.case.name)
    for key in records:
        _report(names[key], on_case)
    # Workers need what the dataset declares, not its list of cases.
    bare = replace(dataset, training=(), test=(), problems=())
    built = map_items(
        partial(_build_one, dataset=bare, preprocess=preprocess, ids=ids, folder=folder, chunk=chunk),
        missing,
        workers=workers,
        bytes_each=max((_building_bytes(order.facts) for order in missing), default=0),
        on_done=lambda number: _report(names[missing[number].key], on_case),
    )
    records.update((order.key, record) for order, record in zip(missing, built, strict=True))
    return [
        CachedCase(entry_folder(folder, order.key), records[order.key], order.case.name, order.facts)
        for order in orders
    ]


def _building_bytes(facts: CaseFacts) -> int:
    """Memory that preparing a case takes, roughly: several float32 copies of image and labels."""
    return 24 * prod(facts.shape) * (len(facts.channels) + 1)


def _report(names: list[str], on_case: Callable[[str], None]) -> None:
    for name in names:
        on_case(name)


def _find_ready(folder: Path, keys: Sequence[str], *, verify: bool) -> dict[str, CaseRecord]:
    """Records of the sound entries among `keys`."""
    distinct = list(dict.fromkeys(keys))
    # Threads: hashing and reading let go of the interpreter.
    with ThreadPoolExecutor(max_workers=default_workers()) as pool:
        found = list(pool.map(partial(_record_of, folder, verify=verify), distinct))
    return {key: record for key, record in zip(distinct, found, strict=True) if record is not None}


def _record_of(folder: Path, key: str, *, verify: bool) -> CaseRecord | None:
    """The record of a sound entry, None if there is none."""
    try:
        return read_entry(entry_folder(folder, key), key, verify=verify)
    except FileNotFoundError:
        return None
    except DatasetError as error:
        logger.warning("a cached case is damaged and is built anew: %s", error)
        return None


def _build_one(
    order: _Order,
    *,
    dataset: Dataset,
    preprocess: PreprocessConfig,
    ids: tuple[int, ...],
    folder: Path,
    chunk: Triple,
) -> CaseRecord:
    final = entry_folder(folder, order.key)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder, order.key):
            # Another process may have been faster.
            record = _record_of(folder, order.key, verify=True)
            if record is not None:
                return record
            discard(final)
            return _build(order, dataset, preprocess, ids, final, chunk)
    except OSError as error:
        raise DatasetError(
            "the cache must be writable",
            received=error.strerror or type(error).__name__,
            remedy="free space there, or name another folder with --cache DIR",
            where=folder,
            code="cache-write",
        ) from error


def _build(
    order: _Order,
    dataset: Dataset,
    preprocess: PreprocessConfig,
    ids: tuple[int, ...],
    final: Path,
    chunk: Triple,
) -> CaseRecord:
    """Read, prepare, write aside, rename."""
    image, labels = load_case(order.case, dataset)
    if content_key_of(image, labels) != order.facts.content_key:
        raise DatasetError(
            "a case must not change between being measured and being prepared",
            received=f"{order.case.name} with other voxels, labels or place",
            remedy="start again when nothing writes to the dataset any more",
            where=order.case.image,
            code="case-changed",
        )
    prepared = prepare(image, preprocess, labels=labels)
    folder = final.parent.parent
    part = new_part(folder, order.key)
    try:
        record = write_entry(part, order.key, prepared, ids, chunk)
        # Without locks another process may have published the same entry; either will do.
        return record if publish(part, final) else read_entry(final, order.key, verify=True)
    finally:
        if part.exists():
            discard(part)


def _require_space(folder: Path, num_bytes: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        DatasetError: less free space than needed at most.
    """
    if not num_bytes:
        return
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise DatasetError(
            "the disk of the cache must have room for the prepared cases",
            received=f"{free / 1e9:.1f} GB free, up to {num_bytes / 1e9:.1f} GB needed",
            remedy="free space there, or name a folder on another disk with --cache DIR",
            where=folder,
            code="disk-space",
        )
