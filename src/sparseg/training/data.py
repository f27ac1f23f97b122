"""From dataset to training and validation cases in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.duplicates import require_no_leak
from sparseg.datasets.load import load_case
from sparseg.datasets.splits import split_cases
from sparseg.errors import DatasetError
from sparseg.preprocessing.config import CTIntensity, MRIntensity, PreprocessConfig
from sparseg.preprocessing.orientation import ras_axes
from sparseg.preprocessing.pipeline import prepare
from sparseg.training.config import TrainConfig
from sparseg.training.sampling import TrainingCase, make_training_case


@dataclass(frozen=True)
class TrainingData:
    """Prepared cases, the preprocessing they went through, and whether validation uses training cases."""

    training: list[TrainingCase]
    validation: list[TrainingCase]
    preprocess: PreprocessConfig
    validates_on_training: bool


def load_training_data(
    dataset: Dataset, config: TrainConfig, *, on_case: Callable[[str], None] = lambda _: None
) -> TrainingData:
    """Read, check and prepare all labelled cases of a dataset.

    Args:
        dataset: The dataset.
        config: Settings of the run.
        on_case: Called with a case's name before it is read.

    Raises:
        DatasetError: nothing to train on, or one image under two names on both sides of the split.
        SparsegError: the first case that is not usable; nothing is trained on a dataset with a bad case.
    """
    if not dataset.training:
        raise DatasetError(
            "a dataset to train on must list labelled cases",
            received=0,
            where=dataset.root,
            remedy="add cases with labels under training",
        )
    train, val = split_cases(dataset.training, val_fraction=config.val_share, seed=config.seed)
    require_no_leak(train, val)
    preprocess = config.preprocess or default_preprocess(dataset)
    prepared: dict[str, TrainingCase] = {}
    for case in dataset.training:
        on_case(case.name)
        prepared[case.name] = _prepare_case(case, dataset, preprocess)
    return TrainingData(
        [prepared[case.name] for case in train],
        [prepared[case.name] for case in val],
        preprocess,
        validates_on_training=bool({case.name for case in train} & {case.name for case in val}),
    )


def default_preprocess(dataset: Dataset) -> PreprocessConfig:
    """CT window or MR z-score after the channel names, at the median spacing of the training cases."""
    is_ct = any("ct" in channel.lower().replace("-", " ").split() for channel in dataset.channels)
    spacings = []
    for case in dataset.training:
        image, _ = load_case(case, dataset)
        permutation, _ = ras_axes(image.affine)
        spacings.append([image.spacing[axis] for axis in permutation])
    a, b, c = np.median(np.array(spacings), axis=0).tolist()
    intensity = CTIntensity() if is_ct else MRIntensity()
    return PreprocessConfig(spacing=(round(a, 4), round(b, 4), round(c, 4)), intensity=intensity)


def _prepare_case(case: Case, dataset: Dataset, preprocess: PreprocessConfig) -> TrainingCase:
    image, labels = load_case(case, dataset)
    if labels is None:
        raise DatasetError(
            "a training case must have a label",
            received=case.name,
            where=case.image,
            remedy="add its label file",
        )
    result = prepare(image, preprocess, labels=labels)
    if result.labels is None:
        raise DatasetError(
            "a training case must keep its label",
            received=case.name,
            where=case.image,
            remedy="add its label file",
        )
    label = result.labels.array[0].astype(np.uint8 if max(dataset.labels) < 256 else np.int16)
    return make_training_case(result.image.array, label)
