"""Every finished run predicts and is scored; what was done before for the same model is not repeated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from sparseg.compare.cases import Cases
from sparseg.compare.kept import Counts, as_json, from_json, kept_in_case
from sparseg.compare.plan import Comparison, Run
from sparseg.crossval.collect import CaseScorer, CaseScores, require_labels
from sparseg.crossval.status import read_status
from sparseg.datasets.dataset import Case, Dataset
from sparseg.errors import SparsegError
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.atomic import write_bytes_atomically

KEPT = "kept.json"


@dataclass(frozen=True)
class RunScores:
    """What a finished run reaches.

    Attributes:
        run: Which one.
        cases: Scores of each case.
        kept: Patches kept, case by case; empty where the model prunes nothing.
        error: Why no case could be scored, or None.
    """

    run: Run
    cases: tuple[CaseScores, ...]
    kept: tuple[Counts, ...]
    error: SparsegError | None = None


class ScoreMonitor(Protocol):
    """What a caller may watch."""

    def on_case(self, run: Run, case: str) -> Callable[[int, int], None]:
        """Before a case; returns what is called after each window with (done, all)."""

    def on_scores(self, run: Run, scores: CaseScores) -> None:
        """After a case."""


def score_runs(
    found: Comparison,
    cases: Cases,
    settings: PredictSettings,
    monitor: ScoreMonitor,
    *,
    tolerance_mm: float = 2.0,
) -> dict[Run, RunScores]:
    """Score the models at the end of all finished runs; a damaged one stops no other.

    Args:
        found: The comparison.
        cases: Its dataset.
        settings: How to run the windows.
        monitor: Watches.
        tolerance_mm: Distance within which NSD counts a surface as right.
    """
    return {
        run: _score(found, run, cases, settings, monitor, tolerance_mm)
        for run in found.runs
        if read_status(found.run_folder(run), run.fold).finished
    }


def _score(
    found: Comparison,
    run: Run,
    cases: Cases,
    settings: PredictSettings,
    monitor: ScoreMonitor,
    tolerance_mm: float,
) -> RunScores:
    folder = found.predictions(run)
    try:
        predictor = Predictor.from_folder(found.model(run), settings)
        require_labels(predictor, cases.dataset, found.run_folder(run))
    except SparsegError as error:
        return RunScores(run, (), (), error)
    chosen = cases.scored(found.splits, run.fold)
    dataset = replace(cases.dataset, training=tuple(case for case, _ in chosen))
    scorer = CaseScorer(folder, dataset, tolerance_mm)
    counter = _KeptPatches(folder, predictor, dataset)
    scored, kept = [], []
    for case, fact in chosen:
        scores = scorer.score(predictor, case, fact, run.fold, monitor.on_case(run, case.name))
        if scores.error is None:
            kept.append(counter.count(case, fact.content_key))
        monitor.on_scores(run, scores)
        scored.append(scores)
    return RunScores(run, tuple(scored), tuple(counts for counts in kept if counts))


class _KeptPatches:
    """Counts of kept patches, remembered beside the predictions."""

    def __init__(self, folder: Path, predictor: Predictor, dataset: Dataset) -> None:
        self.path, self.predictor, self.dataset = folder / KEPT, predictor, dataset
        self.known = _read(self.path)

    def count(self, case: Case, content_key: str) -> Counts:
        key = {"weights_sha256": self.predictor.card.weights_sha256, "content": content_key}
        entry = self.known.get(case.name, {})
        if entry.get("key") == key:
            return from_json(entry["stages"])
        counts = kept_in_case(self.predictor, case, self.dataset)
        self.known[case.name] = {"key": key, "stages": as_json(counts)}
        content = json.dumps(self.known, indent=1, ensure_ascii=False) + "\n"
        write_bytes_atomically(self.path, content.encode())
        return counts


def _read(path: Path) -> dict[str, Any]:
    """What earlier calls counted; nothing if it cannot be read, which costs only time."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(content) if isinstance(content, dict) else {}
