"""What is said about the machine, and peak memory in a process of its own."""

from __future__ import annotations

import getpass
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from sparseg.benchmark import machine, memory
from sparseg.errors import SparsegError
from sparseg.predict.machine import peak_bytes_so_far


def test_the_machine_is_described_without_names_or_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: pytest.fail("asks for the host name"))
    facts = machine.describe_machine(torch.device("cpu"))
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_bytes"] > 2**28
    assert facts["cpu"]
    text = str(facts)
    assert str(Path.home()) not in text.replace("'/'", "")
    assert f"'{getpass.getuser()}'" not in text


def test_outside_a_source_tree_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "sparseg" / "benchmark" / "machine.py"))
    (tmp_path / "sparseg").mkdir()
    assert machine.commit() is None


def test_the_commit_marks_changed_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"ls-files": "__init__.py", "rev-parse": "0123456789ab", "status": ""}
    monkeypatch.setattr(machine, "_git", lambda _, command, *__: answers[command])
    assert machine.commit() == "0123456789ab"
    answers["status"] = " M models/decoder.py"
    assert machine.commit() == "0123456789ab-dirty"


def test_the_peak_covers_memory_already_given_back() -> None:
    before = peak_bytes_so_far()
    held = bytearray(b"x") * (before + 2**26)
    del held
    assert peak_bytes_so_far() >= before + 2**26


@pytest.mark.slow
def test_a_child_reports_its_own_peak_and_not_its_parents() -> None:
    own = bytearray(b"x") * 2**30
    peak = memory.measure_peak_memory("test_tiny", "naive_sparse", "training", threads=1)
    assert len(own) == 2**30
    assert 2**26 < peak < 2**30


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [(1, "Traceback\n  ...\nMemoryError: too large\n", "MemoryError: too large"), (-9, "", "exit code -9")],
)
def test_a_failed_measurement_names_its_reason(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, reason: str
) -> None:
    done = subprocess.CompletedProcess([], code, stdout="", stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SparsegError, match=f"dense_p8 in training must be measurable; received {reason};"):
        memory.measure_peak_memory("btcv", "dense_p8", "training", threads=1)
