"""Row P4: a disk that is full at any write leaves an error, and no file at a final name that is not whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from predict.batch_tools import SHAPE, Notes, write_cases
from predict.threshold_model import threshold_predictor
from sparseg.errors import SparsegError
from sparseg.predict.batch import predict_cases
from sparseg.predict.fingerprints import file_sha256
from sparseg.predict.rows import read_row
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.phantoms import make_phantom

from .figures import rounds


class FullDisk:
    """Lets every write from the n-th on fail, as on a disk without room; 0 lets none fail."""

    def __init__(self, patch: pytest.MonkeyPatch, first: int, *, recovers: bool = False) -> None:
        self.calls, self.first, self.recovers = 0, first, recovers
        self._patch(patch, os, "fsync")
        self._patch(patch, os, "utime")
        self._patch(patch, Path, "replace")
        made = Path.mkdir

        def mkdir(path, *args, **kwargs):
            if not path.exists():
                self.count()
            made(path, *args, **kwargs)

        patch.setattr(Path, "mkdir", mkdir)
        opened, fdopened = Path.open, os.fdopen

        def path_open(path, mode="r", *args, **kwargs):
            file = opened(path, mode, *args, **kwargs)
            return file if mode in ("r", "rb") else _Writer(file, self)

        patch.setattr(Path, "open", path_open)
        patch.setattr(os, "fdopen", lambda handle, *args: _Writer(fdopened(handle, *args), self))

    def count(self) -> None:
        self.calls += 1
        is_full = self.calls == self.first if self.recovers else 0 < self.first <= self.calls
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _patch(self, patch, owner, name):
        honest = getattr(owner, name)

        def call(*args, **kwargs):
            self.count()
            return honest(*args, **kwargs)

        patch.setattr(owner, name, call)


class _Writer:
    """A file whose writes count."""

    def __init__(self, file, disk):
        self._file, self._disk = file, disk

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, content):
        try:
            self._disk.count()
        except OSError:
            self._file.write(content[: len(content) // 2])  # half of it went to the disk
            raise
        return self._file.write(content)


def incomplete(cases, out):
    """Names of files at their final names that are not whole or not right."""
    bad = []
    for seed, case in enumerate(cases):
        row_path = out / "report" / f"{case.name}.json"
        row = read_row(row_path, case.name)
        if row_path.exists() and row is None:
            bad.append(row_path.name)
        if row is not None and row["status"] == "ok" and file_sha256(case.output) != row["output_sha256"]:
            bad.append(case.output.name)
        if case.output.exists():
            truth = make_phantom(SHAPE, seed=seed)[1].array[0]
            if not np.array_equal(np.asarray(nib.load(case.output).dataobj), truth):
                bad.append(case.output.name)
    for path in out.glob("*.json"):
        json.loads(path.read_bytes())
    bad += [path.name for path in out.rglob("*.part")]
    return bad


def run(predictor, cases, out):
    """Errors of a run, also of one that could not go on."""
    try:
        return [str(error) for error in predict_cases(predictor, cases, out, Notes())]
    except (SparsegError, OSError) as error:
        return [str(error)]


@pytest.mark.slow
@pytest.mark.parametrize("recovers", [False, True])
def test_p4_no_room_at_the_nth_write_for_every_n(tmp_path, monkeypatch, figure, recovers):
    """With `recovers` only this one write fails, and everything after it finds room again.

    In the usual round one n in thirteen, other ones for each kind of disk.
    """
    step = 1 if rounds(8) >= 200 else 13
    predictor = threshold_predictor(monkeypatch, PredictSettings(previews=True, overlap_cases=False))
    cases = write_cases(tmp_path / "in", 2)
    out, bad, trials, first = tmp_path / "out", [], 0, 7 if recovers else 0
    while True:
        trials, first = trials + 1, first + step
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, first, recovers=recovers)
            errors = run(predictor, cases, out)
        if disk.calls < first:
            assert errors == []
            break
        bad += incomplete(cases, out)
        assert any(words in " ".join(errors) for words in ("No space left", "File exists")) or is_whole(
            cases, out
        ), (first, errors)
        notes = Notes()
        assert predict_cases(predictor, cases, out, notes, resume=True) == []
        assert incomplete(cases, out) == []
        assert is_whole(cases, out)
        shutil.rmtree(out)
    figure("P4", "files at a final name that are not whole", len(bad), of=trials - 1)
    assert disk.calls > 40
    assert bad == []


def is_whole(cases, out):
    rows = json.loads((out / "report.json").read_text())["cases"] if (out / "report.json").exists() else []
    return [row["status"] for row in rows] == ["ok"] * len(cases)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and resource limits")
@pytest.mark.parametrize("limit", [0, 64, 150, 700])
def test_p4_files_that_may_not_grow(tmp_path, monkeypatch, figure, limit):
    """The limit of the system on the size of files, in a process of its own."""
    import resource

    predictor = threshold_predictor(monkeypatch)
    cases = write_cases(tmp_path / "in", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside idle threads
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os._exit(min(len(run(predictor, cases, tmp_path / "out")), 3))
    _, status = os.waitpid(child, 0)
    bad = incomplete(cases, tmp_path / "out")
    figure("P4", "files at a final name that are not whole", len(bad), of=1)
    assert bad == []
    assert os.waitstatus_to_exitcode(status) >= 1
