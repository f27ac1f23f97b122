"""One tiny model for all tests of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from predict.threshold_model import save_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder with seeded weights that no test changes; it crops nothing."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", foreground_crop=False)
