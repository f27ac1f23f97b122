"""From dataset to prepared training and validation cases in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparseg.datasets.cache import CachedCase, build_cache, default_folder
from sparseg.datasets.dataset import Case, Dataset, require_distinct_names
from sparseg.datasets.duplicates import require_no_leak
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.read import read_dataset
from sparseg.datasets.splits import Splits, find_splits, make_folds, read_splits
from sparseg.datasets.survey import require_usable, survey, with_found_labels, without_bad
from sparseg.errors import ConfigError, DatasetError
from sparseg.preprocessing.config import CTIntensity, MRIntensity, PreprocessConfig
from sparseg.shapes import Triple
from sparseg.training.config import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """Prepared cases, how they were prepared and split, and whether validation uses training cases."""

    training: Sequence[CachedCase]
    validation: Sequence[CachedCase]
    preprocess: PreprocessConfig
    splits: Splits
    validates_on_training: bool


def open_dataset(
    path: Path,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> tuple[Dataset, list[CaseFacts]]:
    """Read the training cases of a dataset of any layout and measure them.

    Args:
        path: Dataset folder or list.
        skip_bad: Leave out cases that cannot be used, and log their names, instead of refusing the dataset.
        workers: Processes that read; None takes all processors.
        on_case: Called with a case's name when it was read.

    Returns:
        The dataset without its test cases, labels found where none are declared, and one record per case.

    Raises:
        DatasetError: nothing to train on, or a case that cannot be used; nothing is trained on a dataset with
            a bad case.
    """
    dataset = replace(read_dataset(path, strict=not skip_bad), test=())
    require_distinct_names(dataset)
    if not dataset.training:
        raise DatasetError(
            "a dataset to train on must have labelled cases",
            received=0,
            where=dataset.root,
            remedy="add labels",
        )
    reports = survey(dataset, workers=workers, on_case=on_case)
    if skip_bad:
        dataset, reports = without_bad(dataset, reports)
    facts = require_usable(dataset, reports)
    return with_found_labels(dataset, reports), facts


def choose_splits(
    dataset: Dataset, facts: Sequence[CaseFacts], config: TrainConfig, file: Path | None = None
) -> Splits:
    """The folds of `file`, else those beside the data (`splits.json`, `splits_final.json`), else new ones.

    Raises:
        DatasetError: a file that does not fit the dataset.
    """
    file = file or find_splits(dataset.root)
    if file is not None:
        return read_splits(file, dataset.training)
    present = {
        case.name: frozenset(fact.label_counts or {}) - {0}
        for case, fact in zip(dataset.training, facts, strict=True)
    }
    return make_folds(dataset.training, present, num_folds=config.num_folds, seed=config.seed)


def load_training_data(
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    config: TrainConfig,
    *,
    chunk: Triple,
    splits: Path | None = None,
    cache: Path | None = None,
    on_size: Callable[[int, int, Path], None] = lambda *_: None,
    on_case: Callable[[str], None] = lambda _: None,
) -> TrainingData:
    """Split, check for leaks and prepare all cases.

    Args:
        dataset: From `open_dataset`.
        facts: From `open_dataset`.
        config: Settings of the run.
        chunk: Crop size (H, W, D); the unit the cache is read in.
        splits: File of folds; by default see `choose_splits`.
        cache: Folder of prepared cases; by default `cases` in the user's cache folder.
        on_size: Called with bytes, number of cases and folder before anything is written there.
        on_case: Called with a case's name when it is prepared.

    Raises:
        DatasetError: one image under two names on both sides of the split, or no room for the cache.
        ConfigError: a fold that does not exist.
    """
    folds = choose_splits(dataset, facts, config, splits)
    train, val = _split(dataset.training, folds, config.fold)
    require_no_leak(train, val, {c.name: f.image_hash for c, f in zip(dataset.training, facts, strict=True)})
    preprocess = config.preprocess or default_preprocess(dataset, facts)
    prepared = build_cache(
        dataset,
        facts,
        preprocess,
        cases=dataset.training,
        folder=default_folder() if cache is None else cache,
        chunk=chunk,
        on_size=on_size,
        on_case=on_case,
    )
    by_name = {case.name: item for case, item in zip(dataset.training, prepared, strict=True)}
    return TrainingData(
        [by_name[case.name] for case in train],
        [by_name[case.name] for case in val],
        preprocess,
        folds,
        validates_on_training=bool({case.name for case in train} & {case.name for case in val}),
    )


def default_preprocess(dataset: Dataset, facts: Sequence[CaseFacts]) -> PreprocessConfig:
    """CT window or MR z-score after the channel names, at the median spacing of the training cases."""
    is_ct = any("ct" in channel.lower().replace("-", " ").split() for channel in dataset.channels)
    a, b, c = np.median([fact.spacing for fact in facts], axis=0).tolist()
    intensity = CTIntensity() if is_ct else MRIntensity()
    return PreprocessConfig(spacing=(round(a, 4), round(b, 4), round(c, 4)), intensity=intensity)


def _split(cases: Sequence[Case], splits: Splits, fold: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    if fold >= len(splits.folds):
        raise ConfigError(
            f"fold must be from 0 to {len(splits.folds) - 1}",
            received=fold,
            where="fold",
            remedy="choose another fold; there are no more folds than patients",
        )
    train, val = set(splits.train(fold)), set(splits.val(fold))
    return tuple(c for c in cases if c.name in train), tuple(c for c in cases if c.name in val)
