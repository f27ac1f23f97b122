"""Which cases train and which validate: folds by patient, balanced by label, kept in a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from sparseg.config import Config, parse_config
from sparseg.datasets.dataset import Case, some
from sparseg.datasets.stratify import assign_patients
from sparseg.errors import ConfigError, DatasetError
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.io import case_name

logger = logging.getLogger("sparseg")
FILES = ("splits.json", "splits_final.json")
_FORMAT = 1


@dataclass(frozen=True)
class Splits:
    """Folds of a cross-validation, by case name.

    Attributes:
        folds: Validation cases of each fold.
        training_only: Cases that train in every fold.
        training: Training cases of each fold, where a file lists them; empty otherwise.
        seed: What new folds were drawn with.
    """

    folds: tuple[tuple[str, ...], ...]
    training_only: tuple[str, ...] = ()
    training: tuple[tuple[str, ...], ...] = ()
    seed: int = 0

    def val(self, fold: int) -> tuple[str, ...]:
        """Names of the validation cases of a fold."""
        return self.folds[fold]

    def train(self, fold: int) -> tuple[str, ...]:
        """Names of its training cases: the listed ones, else all others; with no others the same ones."""
        if self.training:
            return self.training[fold]
        val = set(self.folds[fold])
        others = tuple(sorted(self.names - val))
        return others or self.folds[fold]

    @property
    def names(self) -> set[str]:
        """All cases named."""
        return {name for group in (*self.folds, *self.training, self.training_only) for name in group}


def make_folds(
    cases: Sequence[Case],
    labels_present: Mapping[str, frozenset[int]],
    *,
    num_folds: int = 5,
    seed: int = 0,
    previous: Splits | None = None,
) -> Splits:
    """Divide labelled cases into folds.

    Cases of one patient stay together; every label and the number of cases are spread as evenly as that
    allows. The result does not depend on the order of `cases`. Folds that the dataset itself names are taken
    as they are. With fewer patients than folds there are as many folds as patients; a single patient trains
    and validates, and a warning is logged.

    Args:
        cases: Labelled cases.
        labels_present: Case name -> label ids in it; 0 does not count.
        num_folds: Number of folds, two or more.
        seed: Decides between equally good folds.
        previous: Earlier folds: cases in them stay where they were, others join, and cases that are no longer
            in the dataset leave. Decides the number of folds.

    Raises:
        DatasetError: no case; folds named by the dataset, or earlier folds, that cannot be used.
        ConfigError: `num_folds` below two.
    """
    if not cases:
        raise DatasetError(
            "a split needs at least one case", received=0, remedy="list labelled cases under training"
        )
    if num_folds < 2:
        raise ConfigError(
            "num_folds must be 2 or more", received=num_folds, where="num_folds", remedy="e.g. 5"
        )
    ordered = sorted(cases, key=lambda case: case.name)
    if len({case.patient for case in ordered}) == 1:
        logger.warning(
            "one case only (%s): it trains and validates, scores are not those of unseen data",
            ordered[0].name if len(ordered) == 1 else f"{len(ordered)} images of one patient",
        )
        return Splits((tuple(case.name for case in ordered),), seed=seed)
    if any(case.fold is not None for case in ordered):
        return _declared_folds(ordered, seed)
    return _balanced_folds(ordered, labels_present, num_folds, seed, previous)


def read_splits(path: Path, cases: Sequence[Case] | None = None) -> Splits:
    """Read our `splits.json`, or nnU-Net's `splits_final.json` (a list of `{"train": [...], "val": [...]}`).

    nnU-Net names cases as their files are; such names become those of the cases (`case (1)` is `case _1_`).

    Args:
        path: The file.
        cases: The dataset's labelled cases. With them names are checked, and a case that is in no list trains
            in every fold unless the file lists the training cases.

    Raises:
        DatasetError: not such a file, unknown names, two names of one case, one patient on both sides, a fold
            without cases.
    """
    content = _read_json(path)
    parsed = parse_config(_File, {"folds": content} if isinstance(content, list) else content, where=path)
    splits = Splits(
        tuple(fold.val for fold in parsed.folds),
        training_only=parsed.training_only,
        training=tuple(fold.train for fold in parsed.folds if fold.train is not None),
        seed=parsed.seed,
    )
    if cases is not None:
        splits = _by_case_name(splits, {case.name for case in cases}, path)
    elif isinstance(content, list):
        splits = _by_case_name(splits, set(), path)
    if splits.training and len(splits.training) < len(splits.folds):
        raise _refusal("every fold or none must list its training cases", len(splits.training), where=path)
    if cases is not None:
        splits = _complete(splits, cases, path)
    _require_sound(splits, cases or (), where=path)
    return splits


def write_splits(path: Path, splits: Splits) -> None:
    """Write `splits.json`; it is complete at its name or not there.

    Raises:
        VolumeError: the folder does not exist, or the disk refuses.
    """
    folds: list[dict[str, Any]] = [{"val": list(val)} for val in splits.folds]
    if splits.training:
        for fold, train in zip(folds, splits.training, strict=True):
            fold["train"] = list(train)
    content: dict[str, Any] = {"format": _FORMAT, "seed": splits.seed, "folds": folds}
    if splits.training_only:
        content["training_only"] = list(splits.training_only)
    write_bytes_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def find_splits(root: Path) -> Path | None:
    """Return the splits file beside the data, ours before nnU-Net's, or None."""
    folder = root if root.is_dir() else root.parent
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


class _Fold(Config):
    val: tuple[str, ...]
    train: tuple[str, ...] | None = None


class _File(Config):
    format: int = Field(default=_FORMAT, ge=1, le=_FORMAT)
    seed: int = 0
    folds: tuple[_Fold, ...] = Field(min_length=1)
    training_only: tuple[str, ...] = ()


def _declared_folds(cases: Sequence[Case], seed: int) -> Splits:
    """Folds after `Case.fold`; where only some cases have one and all the same, the others always train."""
    numbers = sorted({case.fold for case in cases if case.fold is not None})
    rest = tuple(case.name for case in cases if case.fold is None)
    if len(numbers) > 1 and rest:
        raise _refusal("every case or none must name its fold", f"none for {some(list(rest))}")
    if len(numbers) == 1 and not rest:
        raise _refusal("a dataset that names folds must have two or more", "one")
    folds = tuple(tuple(case.name for case in cases if case.fold == number) for number in numbers)
    splits = Splits(folds, training_only=rest, seed=seed)
    _require_sound(splits, cases)
    return splits


def _balanced_folds(
    cases: Sequence[Case],
    labels_present: Mapping[str, frozenset[int]],
    num_folds: int,
    seed: int,
    previous: Splits | None,
) -> Splits:
    patients: dict[str, list[str]] = {}
    for case in cases:
        patients.setdefault(case.patient, []).append(case.name)
    num_folds = min(num_folds, len(patients)) if previous is None else len(previous.folds)
    kept = {name: fold for fold, names in enumerate(previous.folds if previous else ()) for name in names}
    always = set(previous.training_only) if previous else set()
    # A new case goes where its patient is.
    fixed = {p: kept[name] for p, names in patients.items() for name in reversed(names) if name in kept}
    outside = {p for p, names in patients.items() if always.intersection(names) and p not in fixed}
    labels = {
        patient: [labels_present.get(name, frozenset()) - {0} for name in names]
        for patient, names in patients.items()
        if patient not in outside
    }
    chosen = assign_patients(labels, num_folds, seed=seed, fixed=fixed)
    folds: list[list[str]] = [[] for _ in range(num_folds)]
    rest = []
    for case in cases:
        if case.patient in outside or (case.name in always and case.name not in kept):
            rest.append(case.name)
        else:
            folds[kept.get(case.name, chosen[case.patient])].append(case.name)
    splits = Splits(tuple(map(tuple, folds)), training_only=tuple(rest), seed=seed)
    _require_sound(splits, cases)
    return splits


def _by_case_name(splits: Splits, known: set[str], path: Path) -> Splits:
    """Put the names that the dataset gives its cases in place of others; without known names, of all."""
    owners: dict[str, str] = {}

    def renamed(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(rename(name) for name in names)

    def rename(name: str) -> str:
        mapped = case_name(name)
        # What is unknown either way is reported as it is written.
        own = mapped if not known or (name not in known and mapped in known) else name
        other = owners.setdefault(own, name)
        if other != name:
            raise _refusal("every name in splits must be of another case", f"{other} and {name}", where=path)
        return own

    return Splits(
        tuple(map(renamed, splits.folds)),
        training_only=renamed(splits.training_only),
        training=tuple(map(renamed, splits.training)),
        seed=splits.seed,
    )


def _complete(splits: Splits, cases: Sequence[Case], path: Path) -> Splits:
    """Compare the names with those of the dataset; cases in no list train in every fold."""
    known = {case.name for case in cases}
    unknown = sorted(splits.names - known)
    if unknown:
        raise _refusal(
            "splits must name cases of this dataset",
            f"{len(unknown)} unknown: {some(unknown)}",
            where=path,
            code="split-unknown",
        )
    if splits.training:
        return splits
    rest = known - {name for val in splits.folds for name in val}
    return Splits(splits.folds, tuple(sorted(rest)), seed=splits.seed)


def _require_sound(splits: Splits, cases: Sequence[Case], *, where: object = "") -> None:
    """Refuse empty sides, and a case or patient on both, but for a dataset of a single patient."""
    patient = {case.name: case.patient for case in cases}
    for fold, val in enumerate(splits.folds):
        train = splits.train(fold)
        if not val or not train:
            raise _refusal(
                f"fold {fold} must have training and validation cases",
                f"{len(train)} and {len(val)}",
                where=where,
                code="split-empty",
            )
        if set(train) == set(val):
            continue
        shared = {patient.get(name, name) for name in train} & {patient.get(name, name) for name in val}
        if shared:
            both = [name for name in (*val, *train) if patient.get(name, name) in shared]
            raise _refusal(
                f"no case or patient may be on both sides of fold {fold}",
                some(list(dict.fromkeys(both))),
                where=where,
                code="split-leak",
            )


def _refusal(rule: str, received: object, *, where: object = "", code: str = "splits") -> DatasetError:
    return DatasetError(
        rule,
        received=received,
        remedy="correct the list of folds, or remove it and let new folds be made",
        where=where,
        code=code,
    )


def _read_json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _refusal("a splits file must be readable JSON", str(error), where=path) from None
    if not isinstance(content, dict | list):
        raise _refusal("a splits file must hold an object or a list", type(content).__name__, where=path)
    return content
