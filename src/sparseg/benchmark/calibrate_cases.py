"""Which cases a model's curve is measured on: best those it was validated with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sparseg.checkpoints.card import ModelCard
from sparseg.config import load_yaml
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.splits import read_splits
from sparseg.errors import DatasetError

CaseKind = Literal["validation", "test", "labelled"]


def choose_cases(
    dataset: Dataset, model: Path, card: ModelCard, max_cases: int | None = None
) -> tuple[CaseKind, list[Case]]:
    """The run's own validation cases, else the test cases with labels, else all cases with labels.

    Args:
        dataset: Dataset with labels.
        model: The model folder, from `find_model`; a run's lies in the run folder.
        card: Its card.
        max_cases: Take the first so many.

    Raises:
        DatasetError: no labelled case.
    """
    names = validation_names(model.parent) if dataset.name == card.provenance.dataset else frozenset()
    groups: list[tuple[CaseKind, list[Case]]] = [
        ("validation", [case for case in dataset.training if case.labelled and case.name in names]),
        ("test", [case for case in dataset.test if case.labelled]),
        ("labelled", [case for case in dataset.cases if case.labelled]),
    ]
    for kind, cases in groups:
        if cases:
            return kind, cases[:max_cases]
    raise DatasetError(
        "a curve is measured on cases with labels",
        received="none",
        remedy="give a dataset whose training or test cases have labels",
        where=dataset.root,
        code="no-labels",
    )


def validation_names(run: Path) -> frozenset[str]:
    """Names of a training run's validation cases; none where the folder is no run, or trained on them too."""
    settings, splits = run / "config.yaml", run / "splits.json"
    if not (settings.is_file() and splits.is_file()):
        return frozenset()
    fold, folds = load_yaml(settings).get("fold", 0), read_splits(splits)
    if not isinstance(fold, int) or not 0 <= fold < len(folds.folds):
        return frozenset()
    return frozenset(folds.val(fold)) - frozenset(folds.train(fold))


def require_same_labels(dataset: Dataset, card: ModelCard) -> None:
    """Refuse a dataset whose ids mean something else.

    Raises:
        DatasetError: an id has another name than in the model.
    """
    differ = [
        f"{number} is {name!r}, in the model {card.labels.get(number)!r}"
        for number, name in dataset.labels.items()
        if number and card.labels.get(number) != name
    ]
    if differ:
        raise DatasetError(
            "the labels of the dataset must be those of the model",
            received="; ".join(differ[:3]),
            remedy="give a dataset labelled like the one the model was trained on",
            where=dataset.root,
            code="labels-differ",
        )
