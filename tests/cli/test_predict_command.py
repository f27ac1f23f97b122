"""`sparseg predict`: what it writes, and that it writes nothing for what it refuses."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from datetime import UTC, datetime, timedelta

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hazards.dicom_faults import expected_affine, make_slices, save_series, stored_values
from hazards.nifti_faults import nifti_bytes, save
from sparseg import __version__ as sparseg_version
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.case import WINDOW_PARTS
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

SHAPE = (12, 10, 9)


def write_case(path, seed=0):
    """Write a phantom's image; return its labels."""
    image, labels = make_phantom(SHAPE, seed=seed)
    write_image(path, image)
    return labels.array[0]


def ids_of(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def predict(sparseg, model_folder, tmp_path):
    """Return `predict(inputs...)` with the model and the folder `out`."""

    def command(*inputs, out=tmp_path / "out", model=model_folder, more=("--device", "cpu")):
        return sparseg("predict", *inputs, "--model", model, "--out", out, *more)

    return command


@pytest.mark.usefixtures("classifying")
class TestRightInput:
    """Inputs of every kind; every label has a right answer."""

    def test_one_file(self, predict, tmp_path):
        truth = write_case(tmp_path / "liver 7.nii.gz")
        outcome = predict(tmp_path / "liver 7.nii.gz")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.startswith(f"liver 7: {tmp_path / 'out' / 'liver 7.nii.gz'} (")
        assert outcome.out.splitlines()[1:] == [f"report: {tmp_path / 'out' / 'report.html'}"]
        np.testing.assert_array_equal(ids_of(tmp_path / "out" / "liver 7.nii.gz"), truth)
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["liver 7.nii.gz", "report", "report.html", "report.json", "statistics.json"]
        names = sorted(path.name for path in (tmp_path / "out" / "report").iterdir())
        assert names == ["liver 7", "liver 7.json"]

    def test_report(self, predict, tmp_path, model_folder):
        truth = write_case(tmp_path / "a.nii")
        assert predict(tmp_path / "a.nii", more=("--overlap", "0.25", "--no-report")).code == 0
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        (row,) = report.pop("cases")
        (model,) = report.pop("models")
        assert model.pop("model") == str(model_folder)
        assert model == {name: report[name] for name in ("weights_sha256", "token_counts", "overlap")}
        weights = (model_folder / "weights.safetensors").read_bytes()
        age = datetime.now(UTC) - datetime.fromisoformat(report.pop("created"))
        assert timedelta(seconds=-1) <= age < timedelta(minutes=5)
        assert report == {
            "schema": 1,
            "versions": {
                "sparseg": sparseg_version,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            "threads": torch.get_num_threads(),
            "files": {"format": "nii.gz", "labelmap": False, "maps": []},
            "labels": {"0": "background", "1": "liver", "2": "tumor"},
            "colours": {"1": [148, 72, 44], "2": [124, 188, 36]},
            "token_counts": [64, 32, 16, 8],
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "overlap": 0.25,
            "device": "cpu",
            "expected": None,
            "mirror": [],
            "keep_empty": False,
            "body_only": False,
            "reading": {
                "affine_choice": "refuse",
                "assume_orientation": None,
                "nonfinite": None,
                "series_uid": None,
                "max_voxels": 2**31,
            },
            "cleanup": {"largest_component": [], "fill_holes": [], "min_ml": 0.0},
        }
        counts = np.bincount(truth.ravel(), minlength=3) * 3 / 1000
        assert row.pop("volumes_ml") == pytest.approx({"liver": counts[1], "tumor": counts[2]}, abs=1e-3)
        steps = {"read", "prepare", "windows", *WINDOW_PARTS, "finish", "statistics", "write"}
        assert row.pop("seconds").keys() == steps
        assert (row.pop("num_windows"), row.pop("num_windows_skipped")) == (1, 0)
        assert row.pop("models") == [{"keep_ratios": None, "token_counts": [64, 32, 16, 8]}]
        assert len(row.pop("settings_sha256")) == 64
        assert 2**26 < row.pop("process_peak_bytes") < 2**36
        assert row == {
            "case": "a",
            "status": "ok",
            "warnings": [],
            "output": "a.nii.gz",
            "output_sha256": hashlib.sha256((tmp_path / "out" / "a.nii.gz").read_bytes()).hexdigest(),
            "input_sha256": hashlib.sha256((tmp_path / "a.nii").read_bytes()).hexdigest(),
            "previews": {},
        }

    def test_overlap_is_the_models_own_unless_given(self, predict, tmp_path, model_folder):
        write_case(tmp_path / "a.nii")
        own = tmp_path / "own"
        shutil.copytree(model_folder, own)
        card = json.loads((own / "model.json").read_text())
        (own / "model.json").write_text(json.dumps({**card, "overlap": 0.625}))
        assert predict(tmp_path / "a.nii", model=own).code == 0
        assert json.loads((tmp_path / "out" / "report.json").read_text())["overlap"] == 0.625

    def test_folder_of_files(self, predict, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        truth = {name: write_case(folder / f"{name}.nii.gz", seed) for seed, name in enumerate("ab")}
        (folder / "notes.txt").write_text("not an image")
        (folder / ".hidden.nii.gz").write_text("left over")
        outcome = predict(folder)
        assert outcome.code == 0
        assert [line.partition(":")[0] for line in outcome.out.splitlines()] == ["a", "b", "report"]
        for name, labels in truth.items():
            np.testing.assert_array_equal(ids_of(tmp_path / "out" / f"{name}.nii.gz"), labels)

    def test_dicom_series_onto_its_own_grid(self, predict, tmp_path):
        series = save_series(tmp_path / "ct_c", make_slices())
        assert predict(series).code == 0
        file = nib.load(tmp_path / "out" / "ct_c.nii.gz")
        np.testing.assert_allclose(file.affine, expected_affine(), atol=1e-4)
        values = stored_values().transpose(2, 1, 0).astype(float) - 1024
        expected = np.digitize(values.clip(-100, 300), [50, 150])
        # Values on a border between two classes may fall either way.
        clear = np.abs(values[..., None] - np.array([50, 150])).min(axis=-1) > 0.5
        np.testing.assert_array_equal(np.asarray(file.dataobj)[clear], expected[clear])

    def test_folder_of_series_and_files(self, predict, tmp_path):
        root = tmp_path / "mixed"
        root.mkdir()
        save_series(root / "p1", make_slices())
        save_series(root / "p2", make_slices())
        truth = write_case(root / "p3.nii.gz")
        (root / "empty").mkdir()
        assert predict(root).code == 0
        rows = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
        assert [(row["case"], row["status"]) for row in rows] == [("p1", "ok"), ("p2", "ok"), ("p3", "ok")]
        np.testing.assert_array_equal(ids_of(tmp_path / "out" / "p3.nii.gz"), truth)
        np.testing.assert_array_equal(
            ids_of(tmp_path / "out" / "p1.nii.gz"), ids_of(tmp_path / "out" / "p2.nii.gz")
        )

    def test_rerun_replaces_what_an_earlier_run_left(self, predict, tmp_path):
        truth = write_case(tmp_path / "a.nii.gz")
        out = tmp_path / "out"
        out.mkdir()
        (out / "a.nii.gz").write_bytes(b"\x1f\x8b" + bytes(198))
        assert predict(tmp_path / "a.nii.gz").code == 0
        np.testing.assert_array_equal(ids_of(out / "a.nii.gz"), truth)
        other = write_case(tmp_path / "a.nii.gz", seed=1)
        assert predict(tmp_path / "a.nii.gz").code == 0
        assert not np.array_equal(truth, other)
        np.testing.assert_array_equal(ids_of(out / "a.nii.gz"), other)

    def test_same_input_gives_the_same_bytes(self, predict, tmp_path):
        write_case(tmp_path / "a.nii.gz")
        assert predict(tmp_path / "a.nii.gz").code == 0
        assert predict(tmp_path / "a.nii.gz", out=tmp_path / "again").code == 0
        assert (tmp_path / "out" / "a.nii.gz").read_bytes() == (tmp_path / "again" / "a.nii.gz").read_bytes()

    def test_a_failed_case_takes_its_old_output_along(self, predict, tmp_path):
        write_case(tmp_path / "a.nii.gz")
        assert predict(tmp_path / "a.nii.gz").code == 0
        (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-100])
        predict(tmp_path / "a.nii.gz").refused(tmp_path / "a.nii.gz")
        assert list((tmp_path / "out").iterdir()) == []

    def test_hostile_names_stay_in_the_output_folder(self, predict, tmp_path):
        folder = tmp_path / "in"
        folder.mkdir()
        for name in ("-rf", "a\nb", "[red]x", "b..", "x" * 240):
            write_case(folder / f"{name}.nii")
        (tmp_path / "out").mkdir()
        outside = tmp_path / "outside.txt"
        outside.write_text("keep")
        (tmp_path / "out" / "rf.nii.gz").symlink_to(outside)
        before = {path for path in tmp_path.rglob("*") if "out/" not in str(path)}
        outcome = predict(folder)
        assert outcome.code == 0, outcome.err
        after = {path for path in tmp_path.rglob("*") if "out/" not in str(path)}
        assert after == before
        assert outside.read_text() == "keep"
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {
            "rf.nii.gz",
            "a_b.nii.gz",
            "_red_x.nii.gz",
            "b.nii.gz",
            f"{'x' * 100}.nii.gz",
            "report",
            "report.html",
            "report.json",
            "statistics.json",
        }
        assert outcome.out.count("\n") == 6


def nan_voxel(path):
    image, _ = make_phantom(SHAPE)
    array = image.array[0].copy()
    array[5, 4, 3] = np.nan
    return save(path, nifti_bytes(array))


def truncated(path):
    write_case(path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def two_channels(path):
    image, _ = make_phantom(SHAPE)
    write_image(path, Volume(np.concatenate([image.array, image.array]), image.affine))
    return path


def missing(path):
    return path


def html(path):
    path.write_text("<html>404 not found</html>")
    return path


def empty_folder(path):
    path.mkdir()
    return path


def unknown_kind(path):
    target = path.with_name("bad.xyz")
    target.write_bytes(b"NRRD0004\n")
    return target


BAD = {
    "missing": (missing, ["No such file", "check the path"]),
    "truncated gzip": (truncated, ["received"]),
    "NaN voxel": (nan_voxel, ["every voxel must be finite", "1 of 1080 voxels", "repair"]),
    "channel count": (two_channels, ["the model takes 1 channel(s): CT", "received 2"]),
    "HTML": (html, ["received an HTML", "download the file itself"]),
    "empty folder": (empty_folder, ["received none of them", "give image files"]),
    "unknown kind": (unknown_kind, ["received a file ending in .xyz", "convert it to .nii.gz"]),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_line_and_no_output(predict, tmp_path, fault):
    make, words = BAD[fault]
    path = make(tmp_path / "bad.nii.gz")
    before = sorted(tmp_path.rglob("*"))
    predict(path).refused(path, "; ", *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fault", [name for name in BAD if name not in ("empty folder", "channel count")])
def test_info_refuses_what_predict_refuses(predict, sparseg, tmp_path, fault):
    path = BAD[fault][0](tmp_path / "bad.nii.gz")
    assert sparseg("info", path) == predict(path)


def test_incomplete_series_is_one_line_and_no_output(predict, sparseg, tmp_path):
    slices = make_slices()
    series = save_series(tmp_path / "ct", [*slices[:3], *slices[4:]])
    outcome = predict(series)
    outcome.refused(series, "missing")
    assert sparseg("info", series) == outcome
    assert not (tmp_path / "out").exists()


def test_two_inputs_of_one_name(predict, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_case(tmp_path / folder / "Case.nii.gz")
    (tmp_path / "b" / "Case.nii.gz").rename(tmp_path / "b" / "case.nii.gz")
    first, second = tmp_path / "a" / "Case.nii.gz", tmp_path / "b" / "case.nii.gz"
    predict(first, second).refused(first, second, "name of its own", "different folders")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("through_link", [False, True])
def test_an_output_never_overwrites_an_input(predict, tmp_path, through_link):
    write_case(tmp_path / "a.nii.gz")
    before = (tmp_path / "a.nii.gz").read_bytes()
    out = tmp_path
    if through_link:
        out = tmp_path / "link"
        out.symlink_to(tmp_path)
    predict(tmp_path / "a.nii.gz", out=out).refused("a.nii.gz", "must not overwrite an input", "--out")
    assert (tmp_path / "a.nii.gz").read_bytes() == before


def test_output_that_is_no_folder(predict, tmp_path):
    write_case(tmp_path / "a.nii.gz")
    (tmp_path / "file").write_text("keep")
    predict(tmp_path / "a.nii.gz", out=tmp_path / "file").refused(tmp_path / "file", "must be a folder")
    predict(tmp_path / "a.nii.gz", out=tmp_path / "file" / "deeper").refused(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "keep"
    (tmp_path / "out" / "a.nii.gz").mkdir(parents=True)
    predict(tmp_path / "a.nii.gz").refused(tmp_path / "out" / "a.nii.gz", "check permissions")


def test_missing_and_damaged_models(predict, tmp_path, model_folder):
    write_case(tmp_path / "a.nii.gz")
    image, out = tmp_path / "a.nii.gz", tmp_path / "out"
    predict(image, model=tmp_path / "none").refused(tmp_path / "none", "model.json", "sparseg train --out")
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    weights = copy / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(raw)
    predict(image, model=copy).refused(weights, "SHA-256", "copy the model folder again")
    weights.unlink()
    predict(image, model=copy).refused(copy, "weights.safetensors", "copy the whole folder")
    (copy / "model.json").write_text((model_folder / "model.json").read_text()[:-40])
    predict(image, model=copy).refused(copy / "model.json", "complete and valid", "copy the model folder")
    card = json.loads((model_folder / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**card, "extra": 1}))
    predict(image, model=copy).refused(copy / "model.json", "unknown configuration key")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--overlap", "1"], ["overlap 1.0"]),
        (["--overlap", "-0.1"], ["overlap -0.1"]),
        (["--batch-size", "0"], ["batch size 0"]),
        (["--device", "tpu"], ["tpu", "cpu"]),
        (["--nope", "1"], ["--nope"]),
        (["--overlap", "half"], ["half"]),
    ],
)
def test_bad_options(predict, tmp_path, options, words):
    write_case(tmp_path / "a.nii.gz")
    predict(tmp_path / "a.nii.gz", more=options).refused(*words)
    assert not (tmp_path / "out").exists()


def test_a1_weights_that_overflow_give_an_error_and_no_output(predict, tmp_path, model_folder):
    """Every stored weight is finite and the hash is right, yet the logits are not finite."""
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = broken / "weights.safetensors"
    tensors = {name: torch.full_like(value, 3e38) for name, value in load_file(weights).items()}
    save_file(tensors, weights)
    card = json.loads((broken / "model.json").read_text())
    card["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (broken / "model.json").write_text(json.dumps(card))
    write_case(tmp_path / "a.nii.gz")
    outcome = predict(tmp_path / "a.nii.gz", model=broken)
    assert outcome.code == 1
    outcome.one_line(tmp_path / "a.nii.gz", "every logit must be finite", "check the weights")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("classifying")
def test_interrupt_keeps_the_complete_cases(predict, tmp_path, monkeypatch):
    truth = write_case(tmp_path / "a.nii.gz")
    write_case(tmp_path / "b.nii.gz", seed=1)
    honest, calls = SparseUNETR.forward, []

    def forward(net, windows):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return honest(net, windows)

    monkeypatch.setattr(SparseUNETR, "forward", forward)
    outcome = predict(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert outcome.code == 130
    outcome.one_line("interrupted")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.nii.gz", "report", "report.json", "statistics.json"]
    assert sorted(path.name for path in (tmp_path / "out" / "report").iterdir()) == ["a", "a.json"]
    np.testing.assert_array_equal(ids_of(tmp_path / "out" / "a.nii.gz"), truth)
