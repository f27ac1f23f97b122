"""Runs commands in this process, with a tiny model and a network that reads the class off the intensity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from predict.threshold_model import classify, save_tiny_model
from sparseg.cli.main import run
from sparseg.models.segmenter import SparseUNETR


class Outcome(NamedTuple):
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    def refused(self, *words: object, remedy: bool = True) -> None:
        """Expect exit code 2, and on stderr nothing but one line with all the words."""
        assert self.code == 2, self
        assert self.out == "", self
        self.one_line(*words, remedy=remedy)

    def one_line(self, *words: object, remedy: bool = True) -> None:
        """Expect one `error:` line with all the words, that ends with what to do."""
        assert self.err.startswith("error: "), self.err
        assert self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1, self.err
        last = self.err.rpartition("; ")[2]
        advice = " --help`" in self.err or not last.startswith(("received", "error"))
        assert advice or not remedy, self.err
        for word in words:
            assert str(word) in self.err, f"{word!r} is not in: {self.err}"


@pytest.fixture
def sparseg(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return the command line as a function."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder with seeded weights that no test changes."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def classifying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every network read the class off the intensity."""
    monkeypatch.setattr(SparseUNETR, "forward", classify)
