"""The folder of a cross-validation: settings and folds for all, one training run per fold.

config.yaml  splits.json  plan.yaml     what all folds share
fold_0/ fold_1/ ...                     training runs
logs/                                   what each training printed
predictions/                            every case by the model that did not see it
summary.json  summary.md                the result
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseg.config import load_yaml, merge, override, parse_config, to_yaml
from sparseg.datasets.dataset import Dataset, some
from sparseg.datasets.splits import Splits, read_splits, write_splits
from sparseg.errors import ConfigError, DatasetError
from sparseg.training.config import TrainConfig
from sparseg.training.manifest import FILE as MANIFEST
from sparseg.volumes.atomic import write_bytes_atomically

CONFIG, SPLITS = "config.yaml", "splits.json"


@dataclass(frozen=True)
class CrossValidation:
    """Settings and folds that all training runs share.

    Attributes:
        folder: Where everything lies.
        config: Settings of every run; its `fold` means nothing.
        splits: Which cases validate in which fold.
    """

    folder: Path
    config: TrainConfig
    splits: Splits

    @property
    def folds(self) -> range:
        """Numbers of the folds."""
        return range(len(self.splits.folds))

    def run(self, fold: int) -> Path:
        """Run folder of a fold."""
        return self.folder / f"fold_{fold}"

    def log(self, fold: int) -> Path:
        """What the training of a fold printed."""
        return self.folder / "logs" / f"fold_{fold}.txt"

    @property
    def predictions(self) -> Path:
        """Folder of the label files."""
        return self.folder / "predictions"


def create(
    folder: Path, config: TrainConfig, splits: Splits, notes: Mapping[str, str] | None = None
) -> CrossValidation:
    """Write settings and folds into a folder.

    Args:
        folder: Made here.
        config: Settings of every run.
        splits: The folds.
        notes: Further text files, name -> content.

    Raises:
        ConfigError: the folder holds something else.
    """
    # What a start that was cut off left behind is not in the way.
    own = {CONFIG, SPLITS, *(notes or {})}
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - own):
        raise ConfigError(
            "a new cross-validation needs an empty folder",
            received=_what_is(folder),
            remedy="choose another --out",
            where=folder,
            code="cv-folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (notes or {}).items():
        write_bytes_atomically(folder / name, text.encode())
    write_splits(folder / SPLITS, splits)
    # Last: a folder with settings is one that can be gone on with.
    write_bytes_atomically(folder / CONFIG, to_yaml(config).encode())
    return CrossValidation(folder, config, splits)


def _what_is(folder: Path) -> str:
    if not folder.is_dir():
        return "a file"
    return "a single training" if (folder / MANIFEST).exists() else "a folder that holds other files"


def exists(folder: Path) -> bool:
    """Whether a folder holds a cross-validation to go on with; a single training has the same two files."""
    return (folder / CONFIG).is_file() and (folder / SPLITS).is_file() and not (folder / MANIFEST).exists()


def read(folder: Path) -> CrossValidation:
    """Read settings and folds.

    Raises:
        ConfigError: no cross-validation there, or settings that are not valid.
        DatasetError: folds that are not valid.
    """
    if not exists(folder):
        raise ConfigError(
            f"a cross-validation holds {CONFIG} and {SPLITS}",
            received="a single training" if (folder / MANIFEST).exists() else "not both",
            remedy="start it first: sparseg cv DATASET --out FOLDER",
            where=folder,
            code="cv-none",
        )
    config = parse_config(TrainConfig, load_yaml(folder / CONFIG), where=folder / CONFIG)
    return CrossValidation(folder, config, read_splits(folder / SPLITS))


def require_same_settings(
    found: CrossValidation,
    values: Mapping[str, Any],
    assignments: Sequence[str],
    flags: Mapping[str, Any],
) -> None:
    """Refuse to go on with other settings than the folds before.

    Args:
        found: What is there.
        values: Content of a settings file; empty without one.
        assignments: `a.b=value` overrides.
        flags: Settings given by flags of their own.

    Raises:
        ConfigError: a setting that is another now.
    """
    stored = found.config.model_dump(mode="json")
    given = merge(override(merge(stored, values), assignments), flags)
    wanted = parse_config(TrainConfig, given).model_dump(mode="json")
    changed = sorted(name for name in stored if wanted[name] != stored[name] and name != "fold")
    if changed:
        raise ConfigError(
            "all folds of a cross-validation have the same settings",
            received=", ".join(f"another {name}" for name in changed),
            remedy="leave these out to go on, or choose another --out",
            where=found.folder / CONFIG,
            code="cv-settings",
        )


def require_same_cases(found: CrossValidation, dataset: Dataset) -> None:
    """Refuse to go on where cases came or went.

    Raises:
        DatasetError: names some of them.
    """
    now, then = {case.name for case in dataset.training}, found.splits.names
    if now != then:
        parts = (("new", sorted(now - then)), ("gone", sorted(then - now)))
        raise DatasetError(
            "the cases of a cross-validation must stay the same",
            received="; ".join(f"{len(names)} {what}: {some(names)}" for what, names in parts if names),
            remedy="choose another --out for the changed dataset",
            where=dataset.root,
            code="cv-cases",
        )


def require_folds(splits: Splits, wanted: int | None) -> None:
    """Refuse another number of folds than was asked for.

    Raises:
        ConfigError: the dataset has folds of its own, or fewer patients than folds.
    """
    if wanted is not None and len(splits.folds) != wanted:
        raise ConfigError(
            f"the dataset has {len(splits.folds)} folds: its own, or as many as patients",
            received=wanted,
            remedy="leave out --folds, or give folds with --splits",
            where="--folds",
            code="cv-folds",
        )
