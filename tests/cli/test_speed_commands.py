"""`--keep-ratio`, `--deadline`, `sparseg calibrate` and `sparseg model verify` on the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from cli.test_train_command import TINY, make_dataset
from predict.curves import usual
from predict.threshold_model import save_tiny_model
from sparseg.checkpoints.folder import read_card
from sparseg.cli.speed_options import deadline_warning, seconds_of
from sparseg.errors import ConfigError
from sparseg.predict.calibration import FILE, write_calibration
from sparseg.predict.case import CaseResult
from sparseg.predict.dial import SpeedChoice
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom


@pytest.fixture
def model(model_folder, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def predict(sparseg, model, tmp_path):
    """Predict one image; returns the outcome and its row."""
    write_image(tmp_path / "scan.nii.gz", make_phantom((14, 12, 13), seed=1)[0])

    def command(*options):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        outcome = sparseg("predict", tmp_path / "scan.nii.gz", "--model", model, "--out", out, *options)
        report = out / "report.json"
        return outcome, json.loads(report.read_text()) if report.is_file() else None

    return command


def put_curve(model, **changes):
    points = [
        point.model_copy(update={"keep_ratios": (point.ratio,) * 3, "token_counts": (64, 1, 1, 1)})
        for point in usual().points
    ]
    weights = read_card(model).weights_sha256
    write_calibration(model, usual(**({"points": tuple(points), "weights_sha256": weights} | changes)))


def test_times_with_their_units():
    assert [seconds_of(text) for text in ("20s", "1.5min", " 3 S ", ".5s", "2 min")] == [20, 90, 3, 0.5, 120]
    for wrong in ("20", "s", "0s", "-3s", "3h", "1e3s", "nans", "3ss", "", "3s 4s"):
        with pytest.raises(ConfigError) as caught:
            seconds_of(wrong)
        assert caught.value.code == "deadline-range"


def test_keep_ratio(predict):
    outcome, report = predict("--keep-ratio", "0.25")
    assert outcome.code == 0, outcome.err
    assert report["token_counts"] == [64, 16, 4, 1]
    (row,) = report["cases"]
    assert row["models"] == [{"keep_ratios": [0.25, 0.25, 0.25], "token_counts": [64, 16, 4, 1]}]
    assert "deadline" not in row
    _, report = predict("--keep-ratio", "1", "--keep-ratio", "0.5", "--keep-ratio", "0.25")
    assert report["token_counts"] == [64, 64, 32, 8]
    _, report = predict()
    assert report["cases"][0]["models"] == [{"keep_ratios": None, "token_counts": [64, 32, 16, 8]}]


def test_what_is_refused(predict, model):
    for options, words in [
        (("--keep-ratio", "0"), ("above 0 and at most 1",)),
        (("--keep-ratio", "0.5", "--keep-ratio", "0.5"), ("each of the 3",)),
        (("--keep-ratio", "0.5", "--deadline", "20s"), ("only one of the two",)),
        (("--deadline", "20"), ("s or min", "20s")),
        (("--deadline", "20s"), ("sparseg calibrate", "--keep-ratio", "no calibration.json")),
    ]:
        outcome, report = predict(*options)
        outcome.refused(*words)
        assert report is None
    put_curve(model, weights_sha256="cd" * 32)
    predict("--deadline", "20s")[0].refused("calibration.json", "cdcdcdcdcdcd", "sparseg calibrate")


def test_deadline(predict, model, monkeypatch):
    """One window: 4 s with the model's own setting, 0.5 s with 0.1."""
    monkeypatch.setattr("sparseg.predict.predictor.time_window", lambda *_, **__: 1.9)
    put_curve(model)
    outcome, report = predict("--deadline", "1min")
    assert (outcome.code, outcome.err) == (0, "")
    (row,) = report["cases"]
    assert row["models"][0]["keep_ratios"] == [1.0, 1.0, 1.0]
    assert row["deadline"]["seconds"] == 60
    assert 4.0 <= row["deadline"]["predicted_seconds"] < 50  # and what reading took
    assert 0 < row["deadline"]["real_seconds"] < 60
    assert row["deadline"]["met"]
    outcome, report = predict("--deadline", "0.001s")
    assert outcome.code == 0
    assert outcome.err.startswith("warning: scan: deadline of 0.001 s: even the fastest setting")
    (row,) = report["cases"]
    assert row["models"][0]["keep_ratios"] == [0.1, 0.1, 0.1]
    assert row["deadline"]["setting"] == "fastest, none fits"
    assert not row["deadline"]["met"]


def test_what_is_said_about_a_deadline():
    choice = SpeedChoice(10.0, 8.0, (None,), 0.9, fits=True)
    assert deadline_warning(CaseResult({"windows": 9.0}, choice=choice)) is None
    assert deadline_warning(CaseResult({"windows": 99.0})) is None
    late = deadline_warning(CaseResult({"windows": 11.0, "encode": 9.0}, choice=choice))
    assert late == "deadline of 10 s missed: 8.0 s were expected, it took 11.0 s"


def test_calibrate_then_info_then_predict(sparseg, model, tmp_path, predict):
    data = make_dataset(tmp_path / "data")
    outcome = sparseg(
        "calibrate", model, data, "--keep-ratios", "0.1", "1.0", "--max-cases", "1", "--device", "cpu"
    )
    assert outcome.code == 0, outcome.err
    assert "1 labelled case(s), cpu" in outcome.out
    assert "0.5 (own)" in outcome.out
    assert "64 > 64 > 64 > 64" in outcome.out
    assert "note: the cases may have been trained on" in outcome.out
    assert outcome.out.endswith(f"{model / FILE}\n{model / 'calibration.png'}\n")
    found = json.loads((model / FILE).read_text())
    assert [point["keep_ratios"] for point in found["points"]] == [[0.1] * 3, [0.5] * 3, [1.0] * 3]
    assert "quality/time curve: 1 labelled case(s), cpu" in sparseg("info", model).out
    outcome, report = predict("--deadline", "10min")
    assert (outcome.code, outcome.err) == (0, "")
    assert report["cases"][0]["deadline"]["met"]
    put_curve(model, weights_sha256="cd" * 32)
    assert "calibration must have been measured with the weights beside it" in sparseg("info", model).out


def test_calibrate_refuses(sparseg, model, tmp_path):
    data = make_dataset(tmp_path / "data")
    sparseg("calibrate", model, data, "--keep-ratios", "2").one_line("above 0 and at most 1")
    sparseg("calibrate", tmp_path / "none", data).refused("best/ or last/")
    assert not (model / FILE).exists()


def test_model_verify(sparseg, model, tmp_path):
    outcome = sparseg("model", "verify", model)
    assert outcome.code == 0
    assert "none test case" in outcome.out
    assert "--write" in outcome.out
    assert outcome.out.endswith("nothing was computed\n")
    outcome = sparseg("model", "verify", model, "--write")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["pass"] * 6
    assert lines[-1] == "passed"
    assert sparseg("model", "verify", model).out == outcome.out
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    outcome = sparseg("model", "verify", model)
    assert outcome.code == 1
    assert "FAIL network" in outcome.out
    assert outcome.out.endswith("FAILED: do not use this model\n")
    sparseg("model", "verify", model, "--write").refused("SHA-256")
    sparseg("model", "verify", tmp_path / "none").refused("best/ or last/")


def test_model_verify_takes_all_folds(sparseg, tmp_path):
    run = tmp_path / "cv"
    for fold in range(2):
        save_tiny_model(run / f"fold_{fold}" / "best")
    assert sparseg("model", "verify", run, "--write").out.count("\npassed\n") == 2
    (run / "fold_1" / "best" / "weights.safetensors").unlink()
    outcome = sparseg("model", "verify", run)
    assert outcome.code == 1
    assert "\npassed\n" in outcome.out
    assert "missing weights.safetensors" in outcome.out


@pytest.mark.slow
def test_training_stores_a_test_case(sparseg, tmp_path):
    data, run = make_dataset(tmp_path / "data"), tmp_path / "run"
    assert sparseg("train", data, "--out", run, *TINY).code == 0
    for folder in (run, run / "last"):
        outcome = sparseg("model", "verify", folder)
        assert outcome.code == 0
        assert "pass logits" in outcome.out
