"""Row P8: hostile names of files, cases and archive members, and links in the output, lead nowhere else."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from predict.batch_tools import SHAPE
from predict.threshold_model import classify, save_tiny_model
from sparseg.cli.main import run
from sparseg.models.segmenter import SparseUNETR
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

from .dicom_faults import make_slices, save_series

FILE_NAMES = ["-rf", "a\nb", "--out=x", "x" * 240, "run", "lock", "report", "a b;c", "~", "$HOME"]
CASE_NAMES = ["../x", "../../x/../y", "/tmp/abs", "a\nb", "-rf", "n" * 250, "..", ".run", "con\0", "report/z"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return the folder that everything must stay out of, but `out` in it; with inputs and a model."""
    monkeypatch.setattr(SparseUNETR, "forward", classify)
    save_tiny_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.txt").write_text("keep")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "labels.nii.gz").write_text("keep")
    return tmp_path


def snapshot(place):
    """Content of every file outside `out`."""
    files = [path for path in place.rglob("*") if (place / "out") not in path.parents and path.is_file()]
    return {path: path.read_bytes() for path in files}


def predict(place, *inputs, code=0):
    """Run the command, and count what it changed outside `out`."""
    before, here = snapshot(place), sorted(Path.cwd().iterdir())
    done = run(["predict", *map(str, inputs), "--model", str(place / "model"), "--out", str(place / "out")])
    assert done == code
    assert sorted(Path.cwd().iterdir()) == here
    after = snapshot(place)
    return sum(before.get(path) != after.get(path) for path in before.keys() | after.keys())


def image(path, seed=0):
    write_image(path, make_phantom(SHAPE, seed=seed)[0])
    return path


def test_p8_names_of_files(place, figure):
    for seed, name in enumerate(FILE_NAMES):
        image(place / "in" / f"{name}.nii.gz", seed)
    escapes = predict(place, place / "in")
    figure("P8", "files outside the output folder", escapes, of=len(FILE_NAMES))
    assert escapes == 0
    rows = json.loads((place / "out" / "report.json").read_text())["cases"]
    assert [row["status"] for row in rows] == ["ok"] * len(FILE_NAMES)
    assert all((place / "out" / row["output"]).is_file() for row in rows)
    assert all((place / "out" / "report" / f"{row['case']}.json").is_file() for row in rows)


def test_p8_names_in_a_dataset_list(place, figure):
    for seed in range(len(CASE_NAMES)):
        image(place / "in" / f"{seed}.nii.gz", seed)
    entries = [{"image": f"{seed}.nii.gz", "case": name} for seed, name in enumerate(CASE_NAMES)]
    (place / "in" / "list.json").write_text(json.dumps({"training": [], "test": entries}))
    escapes = predict(place, place / "in" / "list.json")
    figure("P8", "files outside the output folder", escapes, of=len(CASE_NAMES))
    assert escapes == 0
    rows = json.loads((place / "out" / "report.json").read_text())["cases"]
    assert len(rows) == len(CASE_NAMES)
    for row in rows:
        assert (place / "out" / row["output"]).is_file()
        assert (place / "out" / row["output"]).parent == place / "out"


@pytest.mark.parametrize("name", ["../x.dcm", "/x.dcm", "a/../../x.dcm", "..\\x.dcm", "C:\\x.dcm"])
def test_p8_names_in_an_archive(place, figure, name):
    series = save_series(place / "series", make_slices())
    with zipfile.ZipFile(place / "-x\n.zip", "w") as archive:
        for number, path in enumerate(sorted(series.iterdir())):
            archive.writestr(zipfile.ZipInfo(name if number == 1 else path.name), path.read_bytes())
    escapes = predict(place, place / "-x\n.zip", code=2)
    figure("P8", "files outside the output folder", escapes, of=1)
    assert escapes == 0
    assert not (place / "out").exists()


LINKS = {
    "a.nii.gz": "secret.txt",
    "report.json": "secret.txt",
    "statistics.json": "secret.txt",
    "report/a.json": "secret.txt",
    "report/a": "elsewhere",
    "report/a.claim": "secret.txt",
}


@pytest.mark.parametrize("name", LINKS)
def test_p8_links_out_of_the_output_folder(place, figure, name):
    image(place / "in" / "a.nii.gz")
    link = place / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(place / LINKS[name])
    escapes = predict(place, place / "in")
    figure("P8", "files outside the output folder", escapes, of=1)
    assert escapes == 0
    assert not link.is_symlink()


@pytest.mark.parametrize("name", ["report", "report/.lock"])
def test_p8_links_that_cannot_be_replaced_are_refused(place, figure, name, capsys):
    image(place / "in" / "a.nii.gz")
    link = place / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(place / ("elsewhere" if name == "report" else "nothing"))
    escapes = predict(place, place / "in", code=2 if name == "report" else 1)
    figure("P8", "files outside the output folder", escapes, of=1)
    assert escapes == 0
    assert link.is_symlink()
    assert capsys.readouterr().err.count("error: ") == 1
