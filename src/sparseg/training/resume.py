"""What a run must find as it left it to go on: the dataset and the folds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparseg.checkpoints.folder import CARD, read_card
from sparseg.datasets.dataset import Case, Dataset, some
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.splits import read_splits
from sparseg.errors import ConfigError, DatasetError
from sparseg.training.manifest import FILE as MANIFEST
from sparseg.training.manifest import cases_of, meaning_of, read_manifest


def require_same_dataset(run: Path, dataset: Dataset, facts: Sequence[CaseFacts]) -> None:
    """Refuse to go on with a dataset that is not the one the run was started with, wherever it lies now.

    Args:
        run: Run folder; one without a manifest vouches for no cases.
        dataset: From `open_dataset`.
        facts: From `open_dataset`.

    Raises:
        ConfigError: labels, regions or channels that have another meaning.
        DatasetError: cases that changed, came or went.
    """
    stored = read_manifest(run).get("dataset", {})
    if "labels" in stored:
        _require_same_meaning({part: stored[part] for part in meaning_of(dataset)}, dataset, run / MANIFEST)
    elif (run / "last" / CARD).is_file():  # runs of earlier versions
        _require_same_meaning(meaning_of(read_card(run / "last")), dataset, run / "last" / CARD)
    if "cases" in stored:
        _require_same_cases(stored["cases"], cases_of(dataset, facts), dataset.root)


def require_splits(file: Path, cases: Sequence[Case]) -> None:
    """Refuse to go on without the folds of a run: others would train on cases that it is validated on.

    Args:
        file: `splits.json` in the run folder.
        cases: The dataset's labelled cases.

    Raises:
        DatasetError: it is gone, damaged or of other cases.
    """
    remedy = "restore the file that the run wrote, or train anew in another --out"
    if not file.is_file():
        raise DatasetError(
            "a run must go on with the folds it was started with",
            received=f"no {file.name}",
            remedy=remedy,
            where=file,
            code="resume-splits",
        )
    try:
        read_splits(file, cases)
    except (ConfigError, DatasetError) as error:  # its own remedy is for folds that are not in use yet
        raise DatasetError(
            error.rule, received=error.received, remedy=remedy, where=error.where, code="resume-splits"
        ) from None


def _require_same_meaning(before: dict[str, Any], dataset: Dataset, where: Path) -> None:
    for part, now in meaning_of(dataset).items():
        # As text, since the order of regions is that of the network's outputs.
        if json.dumps(before[part]) != json.dumps(now):
            raise ConfigError(
                f"a run must go on with the {part} it was started with: {before[part]}",
                received=now,
                remedy="correct the dataset's description, or train anew in another --out",
                where=where,
                code="resume-differs",
            )


def changes_between(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Name the cases that changed, came or went between two results of `cases_of`; empty without any."""
    differences = {
        "changed": sorted(name for name in before.keys() & now.keys() if before[name] != now[name]),
        "new": sorted(now.keys() - before.keys()),
        "gone": sorted(before.keys() - now.keys()),
    }
    return "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in differences.items() if names)


def _require_same_cases(before: dict[str, str], now: dict[str, str], root: Path) -> None:
    found = changes_between(before, now)
    if found:
        raise DatasetError(
            "a run must go on with the images and labels it was started with",
            received=found,
            remedy="restore these cases, or train anew in another --out",
            where=root,
            code="resume-cases",
        )
