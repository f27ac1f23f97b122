"""A dataset of phantoms, and comparisons whose runs are trained in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossval.conftest import write_dataset
from sparseg.compare import speed
from sparseg.compare.cases import Cases, open_cases
from sparseg.compare.plan import Budget, Comparison, Plan, Run, create, make_plan
from sparseg.compare.variants import parse_variants
from sparseg.datasets.splits import Splits
from sparseg.training import log
from sparseg.training.monitor import Silent
from sparseg.training.start import stored_config, train

SPLITS = Splits((("a", "b"), ("c", "d")), seed=3)
BASE: dict[str, Any] = {
    "preset": "test_tiny",
    "model": {"feature_size": 2, "roi_size": [16, 16, 16]},
    "batch_size": 1,
    "validate_every": 2,
    "overlap": 0.0,
    "augment": {"noise": [0.5, 0.05]},
}


def plan_of(variants: str = "sparse,random,dense_p8", **changes: Any) -> Plan:
    """Three steps of three rivals with two seeds."""
    values: dict[str, Any] = {
        "dataset": "toy",
        "fingerprint": "f",
        "base": BASE,
        "definitions": parse_variants(variants),
        "budget": Budget(kind="steps", amount=3),
        "seeds": (0, 1),
        "folds": (0,),
    }
    return make_plan(**values | changes)


def train_here(found: Comparison, cases: Cases, run: Run, *, until: int | None = None) -> None:
    """What the child process of a run does, without the second it takes to start one."""
    folder, start = found.run_folder(run), stored_config(_as_run(found, run))
    config = start.model_copy(update={"fold": run.fold})
    train(
        cases.dataset, cases.facts, folder, config, Silent(), splits=found.folder / "splits.json", until=until
    )


def _as_run(found: Comparison, run: Run) -> Path:
    """A folder in which the settings file has the name that a run folder gives it."""
    folder = found.folder.parent / "settings_of_a_run"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(found.settings(run).read_text())
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases; the last one has no tumor."""
    return write_dataset(tmp_path_factory.mktemp("compare") / "data")


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Cases]:
    """A comparison of which all runs but the last are done; that one stopped after a step."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "draw", lambda _: None)
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        cases = open_cases(data)
        found = create(folder, plan_of(), SPLITS)
        *done, last = found.runs
        for run in done:
            train_here(found, cases, run)
        train_here(found, cases, last, until=1)
    return found, cases


@pytest.fixture
def quick_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory without a fresh process for each number."""
    monkeypatch.setattr(
        speed, "measure_peak", lambda _, __, mode: {"inference": 2**30, "training": 2**31}[mode]
    )
