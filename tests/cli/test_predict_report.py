"""The page that `sparseg predict` writes: pictures of every case that worked, and labels as without it."""

from __future__ import annotations

import json

import pytest

from sparseg.errors import VolumeError
from sparseg.viewer import report_page
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

pytestmark = pytest.mark.usefixtures("classifying")


def test_report_writes_a_page_and_changes_no_label(sparseg, model_folder, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    write_image(scans / "a.nii.gz", make_phantom((20, 18, 22), seed=0)[0])
    (scans / "b.nii.gz").write_bytes(b"broken")
    plain = sparseg("predict", scans, "--model", model_folder, "--out", tmp_path / "plain", "--no-report")
    outcome = sparseg("predict", scans, "--model", model_folder, "--out", tmp_path / "out")
    assert plain.code == outcome.code == 1
    assert outcome.out.endswith(f"\nreport: {tmp_path / 'out' / 'report.html'}\n")
    assert not (tmp_path / "plain/report.html").exists()
    assert sorted(path.name for path in (tmp_path / "plain/report").iterdir()) == ["a.json", "b.json"]
    assert (tmp_path / "plain/a.nii.gz").read_bytes() == (tmp_path / "out/a.nii.gz").read_bytes()
    text = (tmp_path / "out/report.html").read_text()
    assert "1 of 2 cases done, 1 failed" in text
    # Labels, tokens and confidence in three planes each.
    assert text.count('<img alt="') == 9
    (first, _) = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert sorted(first["previews"]) == ["confidence", "image", "labels", "tokens"]
    assert all((tmp_path / "out" / name).is_file() for name in first["previews"].values())


def test_one_image_that_fails_alone_leaves_no_page(sparseg, model_folder, tmp_path):
    broken = tmp_path / "b.nii.gz"
    broken.write_bytes(b"broken")
    outcome = sparseg("predict", broken, "--model", model_folder, "--out", tmp_path / "out")
    outcome.refused("b.nii.gz")
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize(
    "error", [VolumeError("the output must be writable", where="x"), OSError(28, "No space left on device")]
)
def test_a_page_that_cannot_be_written_costs_no_label(sparseg, model_folder, tmp_path, monkeypatch, error):
    def fail(out):  # noqa: ARG001
        raise error

    monkeypatch.setattr(report_page, "write_report_page", fail)
    write_image(tmp_path / "a.nii.gz", make_phantom((20, 18, 22), seed=0)[0])
    outcome = sparseg("predict", tmp_path / "a.nii.gz", "--model", model_folder, "--out", tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, f"warning: no report.html: {error}\n")
    assert (tmp_path / "out/a.nii.gz").is_file()
    assert not (tmp_path / "out/report.html").exists()
