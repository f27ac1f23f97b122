"""A toy dataset for all runs of this folder, and no figure where none is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseg.training import log
from training.toy import write_toy_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the steps of these runs."""
    monkeypatch.setattr(log, "draw", lambda _: None)
