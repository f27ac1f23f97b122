"""A folder of cases where something fails or ends early: what it costs, what stays, what is swept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from predict.batch_tools import SHAPE, Notes, go, names, report, write_cases
from predict.threshold_model import threshold_predictor
from sparseg.errors import InputError, NumericsError
from sparseg.predict.batch import predict_cases
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.phantoms import make_phantom


@pytest.fixture
def predictor(monkeypatch):
    return threshold_predictor(monkeypatch)


@pytest.fixture
def cases(tmp_path):
    return write_cases(tmp_path / "in", 4)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("step", ["load", "run_windows", "finish"])
@pytest.mark.parametrize("fault", [NumericsError("bad", remedy="none", code="planned"), OSError(5, "I/O")])
def test_an_error_of_any_step_costs_its_case_only(cases, out, monkeypatch, overlap, step, fault):
    predictor = threshold_predictor(monkeypatch, PredictSettings(overlap_cases=overlap))
    honest, calls = getattr(predictor, step), []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise fault
        return honest(*arguments, **options)

    monkeypatch.setattr(predictor, step, failing)
    notes, errors = go(predictor, cases, out)
    assert notes.of("done") == ["case_000", "case_002", "case_003"]
    assert notes.of("error") == ["case_001"]
    assert [error.code for error in errors] == ["file-system" if type(fault) is OSError else "planned"]
    assert not cases[1].output.exists()
    assert [row["status"] for row in report(out)["cases"]] == ["ok", "error", "ok", "ok"]


def test_a_single_image_that_fails_leaves_what_others_left(predictor, cases, out):
    go(predictor, cases[:2], out)
    for page in ("report.html", "report/case_002.js"):
        (out / page).write_text("of an earlier run")
    cases[2].image.write_bytes(b"")
    _, errors = go(predictor, cases[2:3], out)
    assert len(errors) == 1
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == ["case_000.nii.gz", "case_001.nii.gz", "report/case_000.json", "report/case_001.json"]


def test_what_a_killed_run_left_is_swept(predictor, cases, out):
    go(predictor, cases, out)
    left = [out / f".{'a' * 32}.part", out / "report" / f".{'b' * 32}.part", out / "report" / "x.claim"]
    kept = [out / ".mine.part", out / f".{'a' * 32}.part.txt"]
    for path in (*left, *kept):
        path.write_bytes(b"")
    go(predictor, cases, out, resume=True)
    assert [path.exists() for path in (*left, *kept)] == [False] * 3 + [True] * 2


def test_names_that_would_meet_among_the_rows(predictor, cases, out):
    twin = replace(cases[1], name="case_000.json")
    with pytest.raises(InputError, match=r"case_000\.json") as caught:
        go(predictor, [cases[0], twin], out)
    assert caught.value.code == "names-meet"
    assert not out.exists()


def test_an_interruption_ends_with_whole_files_and_free_claims(predictor, cases, out, monkeypatch):
    honest, calls = predictor.run_windows, []

    def run_windows(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(*arguments, **options)

    monkeypatch.setattr(predictor, "run_windows", run_windows)
    with pytest.raises(KeyboardInterrupt):
        go(predictor, cases, out)
    assert [row["case"] for row in report(out)["cases"]] == names(cases[:2])
    assert sorted(path.name for path in (out / "report").iterdir()) == ["case_000.json", "case_001.json"]
    notes, _ = go(predictor, cases, out, resume=True)
    assert (notes.of("reused"), notes.of("done")) == (names(cases[:2]), names(cases[2:]))
    for seed, case in enumerate(cases):
        truth = make_phantom(SHAPE, seed=seed)[1].array[0]
        counts = {"liver": int((truth == 1).sum()), "tumor": int((truth == 2).sum())}
        row = json.loads((out / "report" / f"{case.name}.json").read_text())
        assert {name: found["voxels"] for name, found in row["statistics"].items()} == counts
        assert np.sum(list(counts.values())) > 0


def test_an_interruption_right_after_a_row_leaves_it_in_the_report(predictor, cases, out, monkeypatch):
    """The signal comes before the case is announced; nothing that is done may be missing in the report."""

    def on_done(case, result):  # noqa: ARG001
        raise KeyboardInterrupt

    notes = Notes()
    monkeypatch.setattr(notes, "on_done", on_done)
    with pytest.raises(KeyboardInterrupt):
        predict_cases(predictor, cases, out, notes)
    assert [row["case"] for row in report(out)["cases"]] == names(cases[:1])
