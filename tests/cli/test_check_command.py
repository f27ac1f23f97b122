"""`sparseg check`: exit codes, reports, repairs, and what a check loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparseg.cli.check import _rows
from sparseg.datasets.findings import Finding
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports go to the current folder, memory to the user's cache folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Three sound cases."""
    root = tmp_path / "toy"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        image, labels = make_phantom((14, 12, 10), seed=seed)
        write_image(root / f"imagesTr/{name}.nii.gz", image)
        write_label_map(root / f"labelsTr/{name}.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    content = {
        "name": "toy",
        "channel_names": {"0": "MR"},
        "labels": {"0": "background", "1": "liver", "2": "tumor"},
        "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in NAMES],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def empty_label(root: Path, name: str) -> None:
    path = root / f"labelsTr/{name}.nii.gz"
    write_label_map(path, np.zeros((14, 12, 10), np.uint8), nib.load(path).affine)


def turned_label(root: Path, name: str) -> None:
    """The same labels at the same place with the first axis stored the other way round."""
    path = root / f"labelsTr/{name}.nii.gz"
    file = nib.load(path)
    other = nib.orientations.axcodes2ornt(("L", "A", "S"))
    turned = file.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(file.affine), other))
    write_label_map(path, np.asarray(turned.dataobj).astype(np.uint8), turned.affine)


def cut_image(root: Path, name: str) -> None:
    path = root / f"imagesTr/{name}.nii.gz"
    path.write_bytes(path.read_bytes()[:-50])


def test_a_clean_dataset(sparseg, toy, tmp_path):
    outcome = sparseg("check", toy, "--workers", 1)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("Medical Segmentation Decathlon dataset 'toy': 3 training and 0 test cases")
    assert lines[1] == "3 of 3 cases usable; errors 0, warnings 0, notes 0"
    assert lines[2:] == ["check-toy/check.json", "check-toy/check.html"]
    content = json.loads((tmp_path / "check-toy/check.json").read_text())
    assert content["findings"] == []
    assert [case["case"] for case in content["cases"]] == list(NAMES)
    assert (tmp_path / "check-toy/check.html").read_text().startswith("<!DOCTYPE html>")


def test_warnings_and_strict(sparseg, toy):
    empty_label(toy, "b")
    outcome = sparseg("check", toy, "--workers", 1)
    assert outcome.code == 1
    assert "label-empty" in outcome.out
    assert sparseg("check", toy, "--workers", 1, "--strict").code == 2


def test_errors_and_places_of_the_reports(sparseg, toy, tmp_path):
    cut_image(toy, "a")
    arguments = ("check", toy, "--json", tmp_path / "x/r.json", "--html", tmp_path / "y/r.html")
    outcome = sparseg(*arguments, "--workers", 1)
    assert outcome.code == 2
    assert "nifti-truncated" in outcome.out
    (finding,) = json.loads((tmp_path / "x/r.json").read_text())["findings"]
    assert (finding["case"], finding["file"]) == ("a", "imagesTr/a.nii.gz")
    assert (tmp_path / "y/r.html").exists()
    assert not (tmp_path / "check-toy").exists()


def test_fix_repairs_and_leaves_out_by_name(sparseg, toy, tmp_path):
    cut_image(toy, "a")
    turned_label(toy, "b")
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    outcome = sparseg("check", toy, "--fix", "--to", tmp_path / "fixed", "--workers", 1)
    assert outcome.code == 2, outcome.err
    assert "repaired b: reorient-label: " in outcome.out
    assert "left out a: nifti-truncated: " in outcome.out
    assert f"{tmp_path / 'fixed'}: 1 cases copied, 1 repairs, 1 cases left out" in outcome.out
    assert before == {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    again = sparseg("check", tmp_path / "fixed", "--workers", 1)
    assert again.code == 0, again.out
    assert "2 of 2 cases usable" in again.out


def test_refusals(sparseg, toy, tmp_path):
    sparseg("check", toy, "--fix").refused("--fix", "--to", "go together")
    sparseg("check", toy, "--to", tmp_path / "new").refused("--fix", "--to alone")
    sparseg("check", toy, "--workers", 0).refused("--workers", "1 or more")
    sparseg("check", toy, "--out", toy / "report").refused("--out", "into the dataset", "elsewhere")
    sparseg("check", toy, "--json", toy / "r.json").refused("--out", "r.json")
    sparseg("check", tmp_path / "gone").refused("gone", "must exist", "check the path")
    assert sorted(path.name for path in toy.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]
    assert not (tmp_path / "check-toy").exists()


def test_many_findings_become_one_row_per_code():
    many = [Finding("label-empty", "warning", "m", "r", f"c{number}") for number in range(30)]
    one = Finding("label-ids", "error", "ids", "mend", "z", repair="round-label")
    assert _rows([one, *many]) == [
        ("error", "z", "label-ids", "ids", "--fix (round-label), or mend"),
        ("warning", "c0, c1, c2 and 27 more", "label-empty", "30x, the first: m", "r"),
    ]
    assert len(_rows(many[:20])) == 20


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_a_check_of_nifti_files_loads_nothing_heavy():
    """Start-up: what is loaded at the end of a whole check, libraries of other formats not among it."""
    code = (
        "import sys; from sparseg.cli.main import run; code = run(['check', 'toy', '--workers', '1']);"
        "print(code, *sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, *loaded = done.stderr.split()
    assert first == "0"
    heavy = {"torch", "monai", "scipy", "nibabel", "SimpleITK", "pydicom", "matplotlib", "accelerate"}
    assert heavy.isdisjoint(loaded)
