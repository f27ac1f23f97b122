"""A folder of predicted label maps against a folder of references."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.datasets.label_table import require_known_ids
from sparseg.errors import DatasetError
from sparseg.metrics.scores import mean_of, score_structures, summary_of
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.geometry import require_same_grid
from sparseg.volumes.io import SUFFIXES, case_name, read_labels
from sparseg.volumes.volume import Volume


def evaluate_folders(
    pred: Path | str,
    ref: Path | str,
    *,
    labels: Mapping[int, str] | None = None,
    out: Path | None = None,
    tolerance_mm: float = 2.0,
) -> dict[str, Any]:
    """Score every reference's prediction of the same case name.

    Args:
        pred: Folder of predicted label maps (.nii, .nii.gz).
        ref: Folder of reference label maps.
        labels: Id -> name, 0 the background; None takes the ids that occur and allows all.
        out: File for the result as JSON, written whole or not at all.
        tolerance_mm: Distance within which NSD counts a surface as right.

    Returns:
        `cases`: per case and class `dice`, `hd95_mm`, `nsd` and voxel counts; None stands for "not defined"
        (see `sparseg.metrics`). `classes` and `mean`: means over the defined values with their number, and
        `*_with_empty`, where a class absent from prediction and reference counts as 1. `extra`: predictions
        without a reference, not scored.

    Raises:
        DatasetError: no references, missing predictions, two files of one case name.
        GeometryError: a prediction on another grid than its reference.
        LabelError: ids not in `labels`.
    """
    pairs, extra = pair_by_name(Path(pred), Path(ref))
    # All files are read and compared before the first score, so a bad case does not surface after an hour.
    names = _check_all(pairs, labels)
    cases = [
        {"case": name, "classes": score_case(*_read_pair(*files), names, tolerance_mm=tolerance_mm)}
        for name, files in pairs.items()
    ]
    classes = [_summary_of(label_id, name, cases) for label_id, name in names.items() if label_id]
    result = {
        "schema": 1,
        "tolerance_mm": tolerance_mm,
        "labels": {str(label_id): name for label_id, name in names.items()},
        "num_cases": len(cases),
        "extra": extra,
        "mean": mean_of(classes),
        "classes": classes,
        "cases": cases,
    }
    if out is not None:
        _write(Path(out), result)
    return result


def pair_by_name(pred: Path, ref: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Return case name -> (prediction, reference), and names of predictions without a reference.

    Raises:
        DatasetError: no references, missing predictions, two files of one case name.
    """
    predictions, references = _label_files(pred), _label_files(ref)
    if not references:
        raise DatasetError(
            "the reference folder must hold .nii or .nii.gz files", where=ref, remedy="check --ref"
        )
    missing = sorted(set(references) - set(predictions))
    if missing:
        raise DatasetError(
            "every reference needs a prediction of the same case name",
            received=f"{len(missing)} of {len(references)} missing: {', '.join(missing[:8])}",
            remedy="predict these cases, or take their references out",
            where=pred,
        )
    pairs = {name: (predictions[name], references[name]) for name in sorted(references)}
    return pairs, sorted(set(predictions) - set(references))


def score_case(
    pred: Volume, ref: Volume, labels: Mapping[int, str], *, tolerance_mm: float
) -> list[dict[str, Any]]:
    """Return one row per class other than 0 for two label maps on one grid."""
    structures = {name: (label_id,) for label_id, name in labels.items() if label_id}
    rows = score_structures(pred.array[0], ref.array[0], ref.spacing, structures, tolerance_mm=tolerance_mm)
    return [{"id": structures[row["name"]][0], **row} for row in rows]


def summary_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the means as rows of text: a head, one row per class, one row over all classes."""
    rows = [["class", "cases", "Dice", "Dice with empty", "HD95 mm", "NSD"]]
    for row in (*result["classes"], {"name": "mean", **result["mean"]}):
        counted = f"{row['dice_count']}" if "id" in row else str(result["num_cases"])
        numbers = [row[key] for key in ("dice", "dice_with_empty", "hd95_mm", "nsd")]
        rows.append([row["name"], counted, *("-" if n is None else f"{n:.4g}" for n in numbers)])
    return rows


def _label_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(
            "predictions and references must be folders",
            received=str(folder),
            where=folder,
            remedy="check --pred and --ref",
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(SUFFIXES):
            continue
        # Case names end before `.seg.nrrd`, 3D Slicer's double suffix.
        other = files.setdefault(case_name(re.sub(r"(?i)\.seg(?=\.nrrd$)", "", path.name)), path)
        if other is not path:
            raise DatasetError(
                "a case must have one file",
                received=f"{other.name}, {path.name}",
                where=folder,
                remedy="remove one of them",
            )
    return files


def _read_pair(pred: Path, ref: Path) -> tuple[Volume, Volume]:
    pair = read_labels(pred), read_labels(ref)
    require_same_grid(*pair, what="prediction and reference")
    return pair


def _check_all(pairs: Mapping[str, tuple[Path, Path]], labels: Mapping[int, str] | None) -> dict[int, str]:
    """Check grids and ids of every case; return the labels, those that occur if none were given."""
    ids = {0}
    for files in pairs.values():
        for volume, path in zip(_read_pair(*files), files, strict=True):
            if labels is not None:
                require_known_ids(volume.array, labels, where=path)
            ids.update(np.unique(volume.array).tolist())
    if labels is not None:
        return dict(labels)
    return {i: f"label {i}" if i else "background" for i in sorted(ids)}


def _summary_of(label_id: int, name: str, cases: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for case in cases for row in case["classes"] if row["id"] == label_id]
    return {"id": label_id, "name": name, **summary_of(rows)}


def _write(out: Path, result: dict[str, Any]) -> None:
    content = (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(out, content)
