"""Row P2: killed at any moment, every file at a final name is complete, and a rerun redoes no good one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import warnings

import nibabel as nib
import numpy as np
import pytest

from predict.batch_tools import SHAPE, Notes, write_cases
from predict.threshold_model import threshold_predictor
from sparseg.predict.batch import predict_cases
from sparseg.predict.fingerprints import file_sha256
from sparseg.predict.rows import read_row
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.phantoms import make_phantom

from .figures import rounds

NUM_CASES = 12
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run_and_kill(predictor, cases, out, seconds):
    """Predict in a process of its own and kill it after a while; True if it was done before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = len(predict_cases(predictor, cases, out, Notes(), resume=True))
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def is_right(case, seed):
    truth = make_phantom(SHAPE, seed=seed)[1].array[0]
    return np.array_equal(np.asarray(nib.load(case.output).dataobj), truth)


def look(cases, out):
    """Count files at final names, and those of them that are not complete; return vouched labels too."""
    seen, bad, vouched = 0, 0, {}
    for seed, case in enumerate(cases):
        row_path = out / "report" / f"{case.name}.json"
        row = read_row(row_path, case.name)
        seen += row_path.exists()
        bad += row_path.exists() and row is None
        if case.output.exists():
            seen += 1
            bad += not is_right(case, seed)
        if row is not None:
            good = case.output.is_file() and file_sha256(case.output) == row["output_sha256"]
            bad += not good
            vouched[case.name] = case.output.stat().st_ino
        for name in (row or {}).get("previews", {}).values():
            seen += 1
            bad += not np.asarray(nib.load(out / name).dataobj).size
    for name in ("report.json", "statistics.json"):
        if (out / name).exists():
            seen += 1
            json.loads((out / name).read_bytes())
    return seen, bad, vouched


@pytest.mark.slow
def test_p2_killed_while_predicting(tmp_path, monkeypatch, figure):
    predictor = threshold_predictor(monkeypatch, PredictSettings(previews=True))
    cases = write_cases(tmp_path / "in", NUM_CASES)
    start = time.monotonic()
    predict_cases(predictor, cases, tmp_path / "out", Notes())
    whole = time.monotonic() - start
    shutil.rmtree(tmp_path / "out")
    moments, kills, incomplete, files, redone = random.Random(0), 0, 0, 0, 0
    kept = 0
    out, before = tmp_path / "out", {}
    while kills < rounds(8):
        done = run_and_kill(predictor, cases, out, moments.uniform(0, 0.7 * whole))
        seen, bad, vouched = look(cases, out)
        files, incomplete = files + seen, incomplete + bad
        # What was good before this process started is still the very same file.
        redone += sum(vouched.get(name) != inode for name, inode in before.items())
        kept += len(before)
        before = vouched
        kills += not done
        if len(vouched) == NUM_CASES:
            shutil.rmtree(out)
            before = {}
    figure("P2", "incomplete files at a final name after a kill", incomplete, of=kills)
    figure("P2", "good cases redone by the rerun", redone, of=kept)
    assert (incomplete, redone) == (0, 0)
    assert files > 2 * kills
    notes = Notes()
    assert predict_cases(predictor, cases, out, notes, resume=True) == []
    assert set(notes.of("reused")) >= set(before)
    assert sorted(notes.of("done") + notes.of("reused")) == [case.name for case in cases]
    assert all(is_right(case, seed) for seed, case in enumerate(cases))
    left = [path.name for path in out.rglob("*") if path.name.startswith(".") or path.suffix == ".claim"]
    assert left == []
