"""The folder of a cross-validation: settings and folds for all, one training run per fold.

config.yaml  splits.json  plan.yaml     what all folds share
cases.json                              what the cases and labels were when it was started
fold_0/ fold_1/ ...                     training runs
logs/                                   what each training printed
predictions/                            every case by the model that did not see it
summary.json  summary.md                the result
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseg.config import load_yaml, merge, override, parse_config, to_yaml
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.splits import Splits, read_splits, write_splits
from sparseg.errors import ConfigError, DatasetError
from sparseg.training.config import TrainConfig
from sparseg.training.manifest import FILE as MANIFEST
from sparseg.training.manifest import cases_of, meaning_of
from sparseg.training.resume import changes_between
from sparseg.volumes.atomic import write_bytes_atomically

CONFIG, SPLITS, CASES = "config.yaml", "splits.json", "cases.json"


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
    folder: Path,
    config: TrainConfig,
    splits: Splits,
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    notes: Mapping[str, str] | None = None,
) -> CrossValidation:
    """Write settings and folds into a folder.

    Args:
        folder: Made here.
        config: Settings of every run.
        splits: The folds.
        dataset: What is cross-validated.
        facts: Of its training cases.
        notes: Further text files, name -> content.

    Raises:
        ConfigError: the folder holds something else.
    """
    # What a start that was cut off left behind is not in the way.
    own = {CONFIG, SPLITS, CASES, *(notes or {})}
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
    known = {**meaning_of(dataset), "cases": cases_of(dataset, facts)}
    write_bytes_atomically(folder / CASES, (json.dumps(known, indent=1, ensure_ascii=False) + "\n").encode())
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


def require_same_cases(found: CrossValidation, dataset: Dataset, facts: Sequence[CaseFacts]) -> None:
    """Refuse to go on where cases changed, came or went, or where labels or channels mean something else.

    Raises:
        DatasetError: names some of them.
    """
    now = cases_of(dataset, facts)
    known = _known(found)
    if known is None:  # of earlier versions, which kept the names alone
        changes = changes_between(dict.fromkeys(found.splits.names, ""), dict.fromkeys(now, ""))
    else:
        # As text, since the order of regions is that of the network's outputs.
        meaning = meaning_of(dataset).items()
        other = [part for part, value in meaning if json.dumps(known.get(part)) != json.dumps(value)]
        changes = "; ".join([changes_between(known["cases"], now)] + [f"other {part}" for part in other])
    if changes.strip("; "):
        raise DatasetError(
            "the cases of a cross-validation must stay the same",
            received=changes.strip("; "),
            remedy="restore them, or choose another --out for the changed dataset",
            where=dataset.root,
            code="cv-cases",
        )


def _known(found: CrossValidation) -> dict[str, Any] | None:
    path = found.folder / CASES
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "cases": dict(content["cases"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "the record of the cases of a cross-validation must be readable",
            received=str(error),
            remedy="restore the file, or choose another --out",
            where=path,
            code="cv-cases",
        ) from None


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
