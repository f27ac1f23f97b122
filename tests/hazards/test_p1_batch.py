"""Row P1: one bad case among many costs no other case."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from predict.threshold_model import classify, save_tiny_model
from sparseg.cli.main import run
from sparseg.models.segmenter import SparseUNETR
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

from .nifti_faults import nifti_bytes, save

SHAPE = (9, 8, 7)
NUM_GOOD = 12
NUM_OF_THE_TABLE = 95  # and one bad case of each of five kinds


def corrupt(path):
    write_image(path, make_phantom(SHAPE)[0])
    path.write_bytes(path.read_bytes()[:-60])


def nan_voxel(path):
    array = make_phantom(SHAPE)[0].array[0].copy()
    array[0, 0, 0] = np.nan
    save(path, nifti_bytes(array))


def dangling_link(path):
    path.symlink_to(path.with_name("gone"))


def folder(path):
    path.mkdir()


def unreadable(path):
    write_image(path, make_phantom(SHAPE)[0])
    path.chmod(0)


BAD = {
    "corrupt": corrupt,
    "nan": nan_voxel,
    "missing": dangling_link,
    "directory": folder,
    "unreadable": unreadable,
}


@pytest.fixture
def cohort(request, tmp_path, monkeypatch):
    """Return the folder of images, the model, the output folder and the right labels by name."""
    num_good = getattr(request, "param", NUM_GOOD)
    monkeypatch.setattr(SparseUNETR, "forward", classify)
    images = tmp_path / "images"
    images.mkdir()
    truth = {}
    for seed in range(num_good):
        image, labels = make_phantom(SHAPE, seed=seed)
        write_image(images / f"case_{seed:03d}.nii.gz", image)
        truth[f"case_{seed:03d}"] = labels.array[0]
    return images, save_tiny_model(tmp_path / "model"), tmp_path / "out", truth


def check(out, truth, bad):
    """Every good case is complete and right; every bad one has a row and no file."""
    rows = {row["case"]: row for row in json.loads((out / "report.json").read_text())["cases"]}
    assert set(rows) == set(truth) | set(bad)
    for name, labels in truth.items():
        assert rows[name]["status"] == "ok"
        np.testing.assert_array_equal(np.asarray(nib.load(out / f"{name}.nii.gz").dataobj), labels)
    for name in bad:
        assert rows[name]["status"] == "error"
        assert rows[name]["code"]
        assert name in rows[name]["message"]
    labels = {f"{name}.nii.gz" for name in truth}
    others = {"report", "report.html", "report.json", "statistics.json"}
    assert {path.name for path in out.iterdir()} == labels | others


@pytest.mark.parametrize(
    "cohort", [NUM_GOOD, pytest.param(NUM_OF_THE_TABLE, marks=pytest.mark.slow)], indirect=True
)
def test_p1_every_kind_of_bad_case_at_once(cohort, capsys, monkeypatch, figure):
    images, model, out, truth = cohort
    names = {f"case_{index:03d}_{kind}": make for index, (kind, make) in enumerate(BAD.items(), start=3)}
    for name, make in names.items():
        make(images / f"{name}.nii.gz")
    locked = next(name for name in names if name.endswith("unreadable"))
    if os.access(images / f"{locked}.nii.gz", os.R_OK):
        deny(monkeypatch, images / f"{locked}.nii.gz")  # the superuser may read everything
    code = run(["predict", str(images), "--model", str(model), "--out", str(out)])
    printed = capsys.readouterr()
    if len(truth) == NUM_OF_THE_TABLE:
        missing = sum(not (out / f"{name}.nii.gz").is_file() for name in truth)
        figure("P1", "good outputs lost", missing, of=len(truth))
    assert code == 1, printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(names)
    assert all(name in line for line, name in zip(lines, names, strict=True))
    assert len(printed.out.splitlines()) == len(truth) + 1  # the line of the report
    check(out, truth, names)


def deny(monkeypatch, locked):
    """Let opening one file fail as it does for a user without permission."""
    honest = Path.open

    def opened(self, *args, **kwargs):
        if self == locked:
            raise PermissionError(13, "Permission denied", str(self))
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)


def test_p1_a_series_folder_without_permission(cohort, capsys, monkeypatch):
    images, model, out, truth = cohort
    (images / "series").mkdir()
    honest = Path.iterdir

    def iterdir(self):
        if self.name == "series":
            raise PermissionError(13, "Permission denied", str(self))
        return honest(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert run(["predict", str(images), "--model", str(model), "--out", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{images / 'series'}: " in line
    assert "Permission denied; check permissions" in line
    check(out, truth, ["series"])


def test_p1_all_bad_is_bad_input(cohort, capsys):
    images, model, out, _ = cohort
    for path in images.iterdir():
        path.write_bytes(b"")
    assert run(["predict", str(images), "--model", str(model), "--out", str(out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == NUM_GOOD
    assert sorted(path.name for path in out.iterdir()) == ["report", "report.html", "report.json"]


def test_p3_a_second_run_leaves_nothing_stale(cohort, capsys):
    """A case that was fine and now is not: its old labels go; the others are made again."""
    images, model, out, truth = cohort
    arguments = ["predict", str(images), "--model", str(model), "--out", str(out)]
    assert run(arguments) == 0
    check(out, truth, [])
    (images / "case_003.nii.gz").write_bytes(b"\x1f\x8b")
    (out / "case_004.nii.gz").write_bytes(bytes(200))
    image, labels = make_phantom(SHAPE, seed=99)
    write_image(images / "case_005.nii.gz", image)
    assert run(arguments) == 1
    assert "case_003" in capsys.readouterr().err
    truth["case_005"] = labels.array[0]
    del truth["case_003"]
    check(out, truth, ["case_003"])
