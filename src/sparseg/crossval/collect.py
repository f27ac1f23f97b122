"""Out-of-fold predictions: every case segmented and scored by the model that did not see it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparseg.crossval.folder import CrossValidation
from sparseg.crossval.status import read_status
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.load import load_image, load_labels
from sparseg.errors import CheckpointError, DatasetError, SparsegError
from sparseg.metrics.scores import score_structures
from sparseg.predict.ensemble import load_predictor
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.atomic import write_bytes_atomically
from sparseg.volumes.io import case_name
from sparseg.volumes.nifti_writer import write_label_map

INDEX = "index.json"


@dataclass(frozen=True)
class CaseScores:
    """One out-of-fold prediction.

    Attributes:
        case: Name.
        fold: Fold whose model made it.
        rows: One per structure, see `score_structures`; empty if the case failed.
        error: Why it failed, or None.
        reused: Whether it is one of an earlier call, of the same model, image and labels.
    """

    case: str
    fold: int
    rows: tuple[dict[str, Any], ...] = ()
    error: SparsegError | None = None
    reused: bool = False


class CaseMonitor(Protocol):
    """What a caller may watch; the command line prints one line per case through it."""

    def on_case(self, case: str, fold: int) -> Callable[[int, int], None]:
        """Before a case; returns what is called after each window with (done, all)."""

    def on_scores(self, scores: CaseScores) -> None:
        """After a case."""


def predict_and_score(
    found: CrossValidation,
    dataset: Dataset,
    facts: Sequence[CaseFacts],
    settings: PredictSettings,
    monitor: CaseMonitor,
    *,
    tolerance_mm: float = 2.0,
) -> list[CaseScores]:
    """Segment every case that validates in some fold by that fold's best model, and score it.

    Writes `predictions/<case>.nii.gz`, and `predictions/index.json` after every case, by which a later call
    knows what it need not repeat.

    Args:
        found: A cross-validation with a model in every fold.
        dataset: Its dataset.
        facts: What was measured, one per training case.
        settings: How to run the windows.
        monitor: Watches.
        tolerance_mm: Distance within which NSD counts a surface as right.

    Returns:
        One entry per case, by fold and name; a case that fails does not stop the others.

    Raises:
        CheckpointError: a fold without a model, or a damaged one.
    """
    cases = {case.name: (case, fact) for case, fact in zip(dataset.training, facts, strict=True)}
    scorer = CaseScorer(found.predictions, dataset, tolerance_mm)
    scored = []
    for fold, names in out_of_fold(found).items():
        predictor = load_predictor([found.run(fold)], settings)
        require_labels(predictor, dataset, found.run(fold))
        for name in names:
            scores = scorer.score(predictor, *cases[name], fold, monitor.on_case(name, fold))
            monitor.on_scores(scores)
            scored.append(scores)
    return scored


def require_finished(found: CrossValidation) -> None:
    """Refuse to score before all folds are trained to the end.

    Raises:
        CheckpointError: names the folds that are not.
    """
    states = [read_status(found.run(fold), fold) for fold in found.folds]
    left = [f"fold {state.fold} at step {state.step}" for state in states if not state.finished]
    if left:
        raise CheckpointError(
            "every fold of a cross-validation must be trained to its end",
            received=", ".join(left),
            remedy="go on with `sparseg cv` without --collect, or wait for the jobs",
            where=found.folder,
            code="cv-unfinished",
        )


def out_of_fold(found: CrossValidation) -> dict[int, list[str]]:
    """Fold -> sorted names of the cases it predicts; a case of several folds belongs to the first."""
    taken: set[str] = set()
    chosen = {}
    for fold, names in enumerate(found.splits.folds):
        chosen[fold] = sorted(set(names) - taken)
        taken.update(names)
    return chosen


def structures_of(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """What is scored: the regions where the dataset has any, else its classes; name -> ids."""
    return dict(dataset.regions) or {name: (number,) for number, name in dataset.labels.items() if number}


class CaseScorer:
    """Predicts and scores cases into a folder, whose `index.json` knows what need not be repeated.

    Args:
        folder: Label files and index.
        dataset: Labels and regions; its training cases are those that may be scored.
        tolerance_mm: Distance within which NSD counts a surface as right.

    Raises:
        DatasetError: two cases of one file name.
    """

    def __init__(self, folder: Path, dataset: Dataset, tolerance_mm: float) -> None:
        self.folder, self.dataset, self.tolerance_mm = folder, dataset, tolerance_mm
        self.structures = structures_of(dataset)
        self.index = _read_index(folder / INDEX)
        _require_distinct([case_name(case.name) for case in dataset.training], dataset.root)

    def score(
        self,
        predictor: Predictor,
        case: Case,
        fact: CaseFacts,
        fold: int,
        on_progress: Callable[[int, int], None],
    ) -> CaseScores:
        """Predict and score a case, or take what an earlier call found."""
        output = self.folder / f"{case_name(case.name)}.nii.gz"
        key = {
            "fold": fold,
            "weights_sha256": predictor.card.weights_sha256,
            "content": fact.content_key,
            "overlap": predictor.overlap,
            "tolerance_mm": self.tolerance_mm,
            "structures": {name: list(ids) for name, ids in self.structures.items()},
        }
        known = self.index.get(case.name, {})
        if known.get("key") == key and known.get("sha256") == _sha256(output):
            return CaseScores(case.name, fold, tuple(known["rows"]), reused=True)
        try:
            rows = self._predict(predictor, case, output, on_progress)
        except SparsegError as error:
            return CaseScores(case.name, fold, error=error)
        self.index[case.name] = {"key": key, "sha256": _sha256(output), "rows": rows}
        content = json.dumps(self.index, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_bytes_atomically(self.folder / INDEX, content.encode())
        return CaseScores(case.name, fold, tuple(rows))

    def _predict(
        self, predictor: Predictor, case: Case, output: Path, on_progress: Callable[[int, int], None]
    ) -> list[dict[str, Any]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)  # after an error no old result looks like a new one
        image = load_image(case, self.dataset)
        reference = load_labels(case, self.dataset, image)
        if reference is None:
            raise DatasetError(
                "a case to score needs labels",
                where=case.image,
                remedy="add its labels",
                code="label-missing",
            )
        labels, _ = predictor.predict_volume(image, on_progress=on_progress)
        write_label_map(output, labels, image.affine, label_names=predictor.card.labels)
        return score_structures(
            labels, reference.array[0], image.spacing, self.structures, tolerance_mm=self.tolerance_mm
        )


def require_labels(predictor: Predictor, dataset: Dataset, run: Path) -> None:
    """Refuse a model of other labels than the dataset's.

    Raises:
        CheckpointError: names both.
    """
    if predictor.card.labels != dataset.labels or predictor.card.regions != dataset.regions:
        raise CheckpointError(
            "the model of a fold must have the labels of the dataset",
            received=f"{predictor.card.labels}, the dataset {dataset.labels}",
            remedy="train the fold again",
            where=run,
            code="cv-labels",
        )


def _require_distinct(names: Sequence[str], root: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise DatasetError(
                "every case must have a file name of its own",
                received=name,
                remedy="rename one of the cases",
                where=root,
                code="case-name",
            )
        seen.add(name.casefold())


def _read_index(path: Path) -> dict[str, Any]:
    """What earlier calls found; nothing if it cannot be read, which costs only time."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(content) if isinstance(content, dict) else {}


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
