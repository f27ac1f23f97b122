"""Row P7: four processes in one folder do each case once, and spoil none."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from predict.batch_tools import SHAPE, Notes, write_cases
from predict.threshold_model import threshold_predictor
from sparseg.predict.batch import predict_cases
from sparseg.predict.fingerprints import file_sha256
from sparseg.volumes.phantoms import make_phantom

NUM_CASES, NUM_PROCESSES = 20, 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_p7_four_at_once(tmp_path, monkeypatch, figure):
    predictor = threshold_predictor(monkeypatch)
    cases = write_cases(tmp_path / "in", NUM_CASES)
    out, start = tmp_path / "out", time.monotonic() + 0.3
    children = []
    for number in range(NUM_PROCESSES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                notes = Notes()
                time.sleep(max(0.0, start - time.monotonic()))
                code = len(predict_cases(predictor, cases, out, notes, resume=True))
                (tmp_path / f"notes_{number}.json").write_text(json.dumps(notes.events))
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * NUM_PROCESSES
    notes = [json.loads((tmp_path / f"notes_{number}.json").read_text()) for number in range(NUM_PROCESSES)]
    done = Counter(name for events in notes for what, name, _ in events if what == "done")
    known = [{name for what, name, _ in events if what in ("done", "reused")} for events in notes]
    twice = sum(count - 1 for count in done.values())
    corrupt = 0
    for seed, case in enumerate(cases):
        truth = make_phantom(SHAPE, seed=seed)[1].array[0]
        corrupt += not np.array_equal(np.asarray(nib.load(case.output).dataobj), truth)
        row = json.loads((out / "report" / f"{case.name}.json").read_text())
        assert row["output_sha256"] == file_sha256(case.output)
    figure("P7", "cases done twice", twice, of=NUM_CASES)
    figure("P7", "cases corrupt", corrupt, of=NUM_CASES)
    assert (twice, corrupt) == (0, 0)
    names = [case.name for case in cases]
    assert sorted(done) == names
    assert known == [set(names)] * NUM_PROCESSES  # each process ends only when everything is done
    assert sum(any(what == "done" for what, _, _ in events) for events in notes) > 1
    assert [row["case"] for row in json.loads((out / "report.json").read_text())["cases"]] == names
    assert [path.name for path in (out / "report").iterdir() if path.suffix != ".json"] == []
