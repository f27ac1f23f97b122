"""A report is made whatever fails on the way, and says what failed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparseg.cli.compare import Machines, _collect
from sparseg.compare import memory, speed
from sparseg.compare.cases import Cases
from sparseg.compare.plan import Comparison
from sparseg.compare.speed import measure_speeds, trained_models


@pytest.fixture
def done(trained: tuple[Comparison, Cases], tmp_path: Path) -> tuple[Comparison, Cases]:
    """A copy of the first seed, of which all runs are done."""
    found, cases = trained
    shutil.copytree(found.folder, tmp_path / "out")
    plan = found.plan.model_copy(update={"seeds": (0,)})
    return replace(found, folder=tmp_path / "out", plan=plan), cases


def collect(found: Comparison, cases: Cases, *, no_speed: bool = False) -> tuple[int, dict[str, Any]]:
    """Exit code and results; the page must be a new one."""
    (found.folder / "compare.html").unlink(missing_ok=True)
    code = _collect(found, cases, Machines(collect=True, no_speed=no_speed, device="cpu"))
    assert (found.folder / "compare.html").is_file()
    return code, json.loads((found.folder / "results.json").read_text())


@pytest.mark.slow
def test_a_damaged_model_is_named_and_stops_no_other(
    done: tuple[Comparison, Cases], capsys: pytest.CaptureFixture[str]
) -> None:
    found, cases = done
    run = found.runs[1]
    weights = found.model(run) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    code, results = collect(found, cases, no_speed=True)
    assert code == 1
    rows = {row["variant"]: row for row in results["rows"]}
    assert [name for name, row in rows.items() if not row["complete"]] == [run.variant]
    assert rows[run.variant]["quality"]["dice"] is None
    assert rows["sparse"]["quality"]["dice"] is not None
    line = f"{run.variant}, fold 0, seed 0: cannot be scored: {found.model(run)}"
    assert line in capsys.readouterr().out
    assert line in (found.folder / "compare.html").read_text()
    # Another seed of the variant stands in from file to file, where there is one.
    assert set(trained_models(found, [run])) == {"sparse", "dense_p8"}
    both = replace(found, plan=found.plan.model_copy(update={"seeds": (0, 1)}))
    assert trained_models(both, [run])[run.variant] == found.run_folder(replace(run, seed=1)) / "last"


@pytest.mark.slow
def test_without_memory_for_speeds_there_is_a_report(
    done: tuple[Comparison, Cases], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, cases = done
    monkeypatch.setattr(memory.sys, "executable", shutil.which("false"))
    code, results = collect(found, cases)
    assert code == 1
    assert [row["inference"] for row in results["rows"]] == [None] * 3
    assert all(row["quality"]["dice"] is not None for row in results["rows"])
    line = "speeds: the memory of a pass in inference must be measurable; received exit code 1; "
    assert line in capsys.readouterr().out
    page = (found.folder / "compare.html").read_text()
    assert page.count(line) == 1
    assert "--no-speed" in page
    # What was measured before is kept, and nothing is left to do for who asks for no more.
    with monkeypatch.context() as patch:
        patch.setattr(speed, "measure_peak", lambda *_: 2**30)
        known = measure_speeds(found, cases, device="cpu", rounds=1)
    for no_speed in (False, True):
        code, results = collect(found, cases, no_speed=no_speed)
        assert code == (0 if no_speed else 1)
        assert results["speed"]["date"] == known["date"]
        assert all(row["training"]["peak_memory_bytes"] == 2**30 for row in results["rows"])
        assert (line in (found.folder / "table.md").read_text()) == (not no_speed)
