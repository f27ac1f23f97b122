"""Label ids, their names, and overlapping regions made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.errors import DatasetError, LabelError

Regions = dict[str, tuple[int, ...]]


def parse_labels(
    table: Mapping[str, Any], regions: Mapping[str, Any] | None = None, *, where: Path | str = ""
) -> tuple[dict[int, str], Regions]:
    """Read the `labels` (and `regions`) of a dataset.json.

    Args:
        table: Decathlon style `{"0": "background", "1": "liver"}`, or nnU-Net style `{"background": 0,
            "liver": 1}` where a list of ids makes all entries regions: `{"background": 0, "whole tumor": [1,
            2], "core": [2]}`.
        regions: Region name -> ids, beside Decathlon style labels.
        where: For messages.

    Returns:
        Labels id -> name in ascending order, and regions name -> ids (empty for plain classes).

    Raises:
        DatasetError: not one of the styles, no background 0, an id declared twice, regions of unknown ids.
    """
    try:
        if all(_is_id(key) for key in table):
            labels = {int(key): str(name) for key, name in table.items()}
            parsed = {str(name): _ids(ids) for name, ids in (regions or {}).items()}
        else:
            labels, parsed = _names_first(table)
    except (TypeError, ValueError):
        raise DatasetError(
            "labels must map ids to names or names to ids",
            received=repr(dict(table))[:120],
            remedy='write {"0": "background", "1": "liver"}',
            where=where,
        ) from None
    _check(labels, parsed, num_entries=len(table), where=where)
    return dict(sorted(labels.items())), parsed


def region_masks(labels: np.ndarray, regions: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Turn ids `[H,W,D]` into overlapping masks `[R,H,W,D]`, uint8, in the order of `regions`."""
    return np.stack([np.isin(labels, ids) for ids in regions.values()]).astype(np.uint8)


def require_known_ids(labels: np.ndarray, known: Mapping[int, str], *, where: object = "") -> None:
    """Refuse ids that the dataset does not declare.

    Raises:
        LabelError: lists the unknown ids and their voxel counts.
    """
    ids, counts = np.unique(labels, return_counts=True)
    unknown = [(int(i), int(n)) for i, n in zip(ids, counts, strict=True) if int(i) not in known]
    if unknown:
        listed = ", ".join(f"{i} ({n} voxels)" for i, n in unknown[:8])
        raise LabelError(
            f"label ids must be among {sorted(known)}",
            received=listed + (f" and {len(unknown) - 8} more ids" if len(unknown) > 8 else ""),
            remedy="correct the label file or declare the ids in the list of labels",
            where=where,
            code="label-unknown",
        )


def _is_id(key: object) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdigit()


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise TypeError
    return tuple(values)


def _names_first(table: Mapping[str, Any]) -> tuple[dict[int, str], Regions]:
    entries = {str(name): _ids(value) for name, value in table.items()}
    labels = {ids[0]: name for name, ids in entries.items() if len(ids) == 1}
    if not any(isinstance(value, list) for value in table.values()):
        return labels, {}
    regions = {name: ids for name, ids in entries.items() if ids != (0,)}
    for ids in regions.values():
        for label_id in ids:
            labels.setdefault(label_id, f"label {label_id}")
    return labels, regions


def _check(labels: dict[int, str], regions: Regions, *, num_entries: int, where: Path | str) -> None:
    ids = sorted(labels)
    if ids[0] != 0 or len(ids) < 2:
        raise DatasetError(
            "labels must hold 0, the background, and at least one structure",
            received=labels,
            where=where,
            remedy='write {"0": "background", "1": "liver"}',
        )
    if not regions and num_entries != len(ids):
        raise DatasetError(
            "every label id must be declared once",
            received=ids,
            remedy="remove the double entries",
            where=where,
        )
    if len(set(labels.values())) != len(labels):
        raise DatasetError(
            "label names must differ", received=sorted(labels.values()), where=where, remedy="rename one"
        )
    members = {label_id for ids in regions.values() for label_id in ids}
    unknown = sorted(members - (set(labels) - {0}))
    if unknown:
        raise DatasetError(
            "regions must consist of declared ids other than 0",
            received=unknown,
            where=where,
            remedy="declare the ids under labels",
        )
