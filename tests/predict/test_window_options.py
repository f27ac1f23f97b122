"""Empty windows and mirroring from the settings to the labels and the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from predict.threshold_model import (
    BRATS,
    classify,
    save_tiny_model,
    threshold_predictor,
    tiny_card,
    tiny_net,
)
from sparseg.errors import ConfigError
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.ensemble import Ensemble
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.predict.window_options import body_rule, empty_rule, mirror_axes, skip_rules
from sparseg.preprocessing.config import CTIntensity, MRIntensity
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

NAMES = {0: "background", 1: "liver", 2: "tumor"}


def surrounded(air: float = -1000.0) -> tuple[Volume, np.ndarray]:
    """Return a phantom of 16 x 14 x 12 in a corner of 48 x 20 x 16 voxels of air, and its labels."""
    image, truth = make_phantom((16, 14, 12), seed=1)
    array = np.full((1, 48, 20, 16), air, np.float32)
    labels = np.zeros(array.shape[1:], np.uint8)
    array[:, :16, :14, :12], labels[:16, :14, :12] = image.array, truth.array[0]
    return Volume(array, image.affine), labels


@pytest.mark.parametrize("air", [-1000.0, -100.0, -97.0], ids=["far below", "at", "near the clip minimum"])
def test_empty_windows_are_skipped_and_counted(monkeypatch, air):
    image, truth = surrounded(air)
    results = {}
    for keep in (False, True):
        settings = PredictSettings(overlap=0.5, keep_empty=keep)
        labels, results[keep] = threshold_predictor(
            monkeypatch, settings, foreground_crop=False
        ).predict_volume(image)
        np.testing.assert_array_equal(labels, truth)
    # Windows of 16 start at 0, 8, 16, 24, 32 and at 0, 4: those from 24 on are empty with 2 voxels around.
    assert (results[True].num_windows, results[True].num_windows_skipped) == (10, 0)
    assert (results[False].num_windows, results[False].num_windows_skipped) == (6, 4)


def test_what_a_network_sees_in_air_is_dropped_but_nothing_near_the_patient(monkeypatch):
    """A network that calls everything liver: only voxels that no window with content covers change."""
    image, _ = surrounded()

    def forward(net, windows):
        logits = classify(net, windows)
        logits[:, 1] += 1000
        return logits

    predictors = {
        keep: threshold_predictor(
            monkeypatch, PredictSettings(overlap=0.5, keep_empty=keep), foreground_crop=False
        )
        for keep in (True, False)
    }
    monkeypatch.setattr(SparseUNETR, "forward", forward)
    assert (predictors[True].predict_volume(image)[0] == 1).all()
    found, _ = predictors[False].predict_volume(image)
    # The last window run starts at 16 and ends with voxel 31.
    assert (found[:32] == 1).all()
    assert (found[32:] == 0).all()


def test_an_ensemble_counts_the_windows_of_all(monkeypatch):
    image, truth = surrounded()
    member = threshold_predictor(monkeypatch, PredictSettings(overlap=0.5), foreground_crop=False)
    labels, result = Ensemble([member, member]).predict_volume(image)
    np.testing.assert_array_equal(labels, truth)
    assert (result.num_windows, result.num_windows_skipped) == (12, 8)


def test_sums_in_a_file_change_nothing(monkeypatch):
    image, truth = surrounded()
    settings = PredictSettings(overlap=0.5, max_bytes=0)
    labels, _ = threshold_predictor(monkeypatch, settings, foreground_crop=False).predict_volume(image)
    np.testing.assert_array_equal(labels, truth)


def test_the_rule_of_a_card():
    net = tiny_net()
    ct = empty_rule(tiny_card(net, labels={0: "background", 3: "b", 7: "c"}))
    assert (ct.value, ct.tolerance, ct.margin_vox) == (-1.0, 0.02, 2)
    assert ct.logits == (10.0, 0.0, 0.0)
    assert empty_rule(tiny_card(net, regions=BRATS)).logits == (-10.0, -10.0, -10.0)
    mr = empty_rule(tiny_card(net, intensity=MRIntensity(), foreground_threshold=None))
    assert (mr.value, mr.tolerance) == (0.0, 0.0)
    assert empty_rule(tiny_card(net, labels={1: "a", 3: "b", 7: "c"})) is None


def on_a_table() -> tuple[Volume, np.ndarray]:
    """Return a block of class 1 with a lesion of class 2, beside it a sheet as bright, and labels."""
    array = np.full((1, 60, 18, 16), -1000.0, np.float32)
    array[0, 4:22, 3:15, :] = 100.0
    array[0, 8:12, 6:10, 4:8] = 200.0
    labels = np.select([array[0] > 150, array[0] > 50], [2, 1]).astype(np.uint8)
    array[0, 50, :, :] = 100.0
    return Volume(array, np.diag([4.0, 5.0, 5.0, 1.0])), labels


def test_over_the_body_only_the_table_costs_nothing_and_is_background(monkeypatch):
    image, truth = on_a_table()
    results = {}
    for body_only in (False, True):
        settings = PredictSettings(overlap=0.5, body_only=body_only)
        predictor = threshold_predictor(monkeypatch, settings, foreground_crop=False)
        labels, results[body_only] = predictor.predict_volume(image)
        np.testing.assert_array_equal(labels[:46], truth[:46])
        assert (labels[50] == (0 if body_only else 1)).all()
    # Of 60 x 18 x 16, windows of 16 start at 0, 8, ..., 44 and 0, 2; over the body, 18 x 12 x 16, at 4 and 6.
    assert results[False].num_windows + results[False].num_windows_skipped == 7 * 2
    assert results[True].num_windows == 2
    assert results[True].num_windows_skipped == 7 * 2 - 2


def test_the_body_of_a_card():
    net = tiny_net()
    assert body_rule(tiny_card(net)).threshold == -0.98  # -500 HU lie below the clip range
    wide = CTIntensity(clip=(-1000.0, 1000.0))
    assert body_rule(tiny_card(net, intensity=wide)).threshold == pytest.approx(-0.5)
    assert skip_rules(tiny_card(net), keep_empty=True, body_only=False) == (None, None)


@pytest.mark.parametrize(
    ("changes", "keep_empty"),
    [
        ({}, True),
        ({"intensity": MRIntensity(), "foreground_threshold": None}, False),
        ({"labels": {1: "a", 3: "b", 7: "c"}}, False),
    ],
    ids=["both", "MR", "no background"],
)
def test_the_body_only_is_refused(changes, keep_empty):
    with pytest.raises(ConfigError) as caught:
        skip_rules(tiny_card(tiny_net(), **changes), keep_empty=keep_empty, body_only=True)
    assert caught.value.code == "body-only"


def test_directions_become_axes_of_the_model_grid():
    card = tiny_card(tiny_net(), labels={**NAMES, 2: "bright lesion"})
    assert mirror_axes(("si", "lr", "si"), card) == (0, 2)
    assert mirror_axes((), card) == ()


@pytest.mark.parametrize("name", ["left kidney", "kidney_right", "Left-Thalamus"])
def test_sides_forbid_left_right(name):
    card = tiny_card(tiny_net(), labels={**NAMES, 2: name})
    with pytest.raises(
        ConfigError, match=rf"left-right axis; received lr with .*{name}; mirror along"
    ) as caught:
        Predictor(tiny_net(), card, PredictSettings(mirror=("lr",)))
    assert caught.value.code == "mirror-sides"
    assert mirror_axes(("ap", "si"), card) == (1, 2)


def test_mirrored_logits_are_the_mean_by_hand():
    image, _ = make_phantom((16, 16, 16), seed=3)
    net = tiny_net()
    card = tiny_card(net, foreground_crop=False)
    found = Predictor(net, card, PredictSettings(mirror=("ap", "si"))).predict_prepared(image)
    window = torch.from_numpy(image.array)[None]
    with torch.inference_mode():
        views = [net(window.flip(dims)).flip(dims) for dims in ([], [3], [4], [3, 4])]
    torch.testing.assert_close(found, torch.stack(views).mean(dim=0)[0], atol=1e-5, rtol=1e-5)
    assert float((found - views[0][0]).abs().max()) > 1e-3


def test_options_of_the_command_stand_in_the_report(monkeypatch, tmp_path):
    from sparseg.cli.main import run

    monkeypatch.setattr(SparseUNETR, "forward", classify)
    model = save_tiny_model(tmp_path / "model", foreground_crop=False)
    write_image(tmp_path / "scan.nii.gz", surrounded()[0])
    base = ["predict", str(tmp_path / "scan.nii.gz"), f"--model={model}", "--device=cpu"]
    counts = {}
    for name, options in {"plain": [], "kept": ["--keep-empty", "--mirror=ap", "--mirror=lr"]}.items():
        assert run([*base, f"--out={tmp_path / name}", *options]) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        (row,) = report["cases"]
        counts[name] = (row["num_windows"], row["num_windows_skipped"])
        assert report["keep_empty"] == (name == "kept")
        assert report["mirror"] == (["ap", "lr"] if name == "kept" else [])
    assert counts == {"plain": (6, 4), "kept": (10, 0)}
