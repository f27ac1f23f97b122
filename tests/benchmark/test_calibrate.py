"""`sparseg calibrate`: a curve whose Dice and seconds are known, and which cases it takes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from predict.curves import usual
from predict.threshold_model import NAMES, classify, save_tiny_model, tiny_card, tiny_net
from sparseg.benchmark import calibrate as calibrate_module
from sparseg.benchmark.calibrate import (
    calibrate_folder,
    difference_noise,
    mean_dice,
    paired_medians,
    settings_to_measure,
    structure_dice,
    time_settings,
)
from sparseg.benchmark.calibrate_cases import choose_cases, validation_names
from sparseg.benchmark.calibrate_figure import curve_figure
from sparseg.checkpoints.card import Provenance
from sparseg.checkpoints.folder import read_card, save_model
from sparseg.datasets.read import read_dataset
from sparseg.errors import ConfigError, DatasetError
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.calibration import FILE, PICTURE, read_calibration
from sparseg.predict.predictor import Predictor
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

SHAPE = (14, 12, 13)


def write_case(root, kind, name, seed):
    for folder in (f"images{kind}", f"labels{kind}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    image, labels = make_phantom(SHAPE, seed=seed)
    write_image(root / f"images{kind}" / f"{name}.nii.gz", image)
    ids = labels.array[0].astype(np.uint8)
    write_label_map(root / f"labels{kind}" / f"{name}.nii.gz", ids, labels.affine)
    return {"image": f"images{kind}/{name}.nii.gz", "label": f"labels{kind}/{name}.nii.gz"}


def write_dataset(root, training=("a", "b"), test=(), names=NAMES):
    content = {
        "name": "toy",
        "channel_names": {"0": "CT"},
        "labels": {str(number): name for number, name in names.items()},
        "training": [write_case(root, "Tr", name, seed) for seed, name in enumerate(training)],
        "test": [write_case(root, "Ts", name, 9) for name in test],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data")


@pytest.fixture
def model(tmp_path):
    return save_tiny_model(tmp_path / "model", foreground_crop=False)


def forgetful(net, image, selection=None):
    """Reads the class off the intensity; with a keep ratio below 0.5 it takes the tumour for background."""
    logits = classify(net, image)
    if selection is not None and selection.keep_ratios[0] < 0.5:
        logits[:, 0] += 1e4 * (logits.argmax(dim=1) == 2)
    return logits


def test_a_curve_of_known_dice_and_seconds(tmp_path, dataset, model, monkeypatch):
    monkeypatch.setattr(SparseUNETR, "forward", forgetful)
    taken = {0.1: 1.0, 0.25: 2.0, 0.5: 4.0, 1.0: 8.0}

    def seconds_of(run, window):
        assert tuple(window.shape) == (1, 1, 16, 16, 16)
        ratios = run.keywords["selection"].keep_ratios
        return taken[ratios[0]]

    monkeypatch.setattr(calibrate_module, "time_once", seconds_of)
    steps = []
    found = calibrate_folder(
        model, dataset, keep_ratios=(1.0, 0.25, 0.1, 0.5, 0.25), rounds=3, on_step=steps.append
    )
    assert read_calibration(model, read_card(model)) == found
    assert (model / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert [point.ratio for point in found.points] == [0.1, 0.25, 0.5, 1.0]
    assert [point.own for point in found.points] == [False, False, True, False]
    assert [point.token_counts for point in found.points] == [
        (64, 6, 1, 1), (64, 16, 4, 1), (64, 32, 16, 8), (64, 64, 64, 64),
    ]  # fmt: skip
    assert [point.seconds_per_window for point in found.points] == pytest.approx([1.0, 2.0, 4.0, 8.0])
    # Without its tumour the other class is still right; both count the same.
    assert [point.dice for point in found.points] == pytest.approx([0.5, 0.5, 1.0, 1.0], abs=0.02)
    assert found.own.dice_noise == 0.0
    # Of four pairs of case and structure two fall from 1 to 0: s = 1 / sqrt(3), over sqrt(4) pairs.
    assert found.points[0].dice_noise == pytest.approx(1 / math.sqrt(12), abs=0.02)
    assert (found.cases, found.num_cases, found.dataset) == ("labelled", 2, "toy")
    assert found.machine.device == "cpu"
    assert found.before_seconds_per_mvoxel > 0
    assert found.after_seconds_per_mvoxel > 0
    assert steps == [
        "case 1 of 2: 4 settings",
        "case 2 of 2: 4 settings",
        "timing one window, 3 rounds over 4 settings",
    ]
    # Neither names of cases nor paths.
    text = (model / FILE).read_text()
    assert str(tmp_path) not in text
    assert '"a"' not in text


def test_what_cannot_be_measured_is_refused(tmp_path, dataset, model):
    dense = save_dense(tmp_path / "dense")
    with pytest.raises(ConfigError) as caught:
        calibrate_folder(dense, dataset, keep_ratios=())
    assert caught.value.code == "keep-ratio-dense"
    for wrong in ({"keep_ratios": (1.5,)}, {"max_cases": 0}, {"threads": 0}, {"rounds": 0}):
        with pytest.raises(ConfigError):
            calibrate_folder(model, dataset, **({"keep_ratios": (0.5,)} | wrong))
    other = write_dataset(tmp_path / "other", names={0: "background", 1: "tumor", 2: "liver"})
    with pytest.raises(DatasetError, match=r"1 is 'tumor', in the model 'liver'") as caught:
        calibrate_folder(model, other, keep_ratios=(0.5,))
    assert caught.value.code == "labels-differ"
    assert not (model / FILE).exists()


def save_dense(folder):
    net = tiny_net(pruning_stages=())
    save_model(folder, net, tiny_card(net, foreground_crop=False))
    return folder


def test_settings_are_measured_once(model):
    predictor = Predictor.from_folder(model)
    # 0.01 and 0.02 both leave one token, and 0.5 is the model's own.
    found = settings_to_measure(predictor, (1.0, 0.01, 0.02, 0.5))
    assert found == [(0.01,) * 3, (0.5,) * 3, (1.0,) * 3]
    assert settings_to_measure(predictor, ()) == [(0.5,) * 3]


def test_absolute_counts_are_a_setting_of_their_own():
    net = tiny_net(num_keep=(30, 20, 10))
    predictor = Predictor(net, tiny_card(net))
    assert settings_to_measure(predictor, (0.25, 0.5)) == [(0.25,) * 3, (0.5,) * 3, None]
    assert settings_to_measure(predictor, (0.1,))[1] is None


class TestCases:
    """Validation cases of the run, else test cases with labels, else all."""

    def test_test_cases_before_training_cases(self, tmp_path, dataset, model):
        data, card = read_dataset(dataset), read_card(model)
        assert [case.name for case in choose_cases(data, model, card)[1]] == ["a", "b"]
        kind, cases = choose_cases(data, model, card, 1)
        assert (kind, [case.name for case in cases]) == ("labelled", ["a"])
        data = read_dataset(write_dataset(tmp_path / "more", test=("z",)))
        kind, cases = choose_cases(data, model, card)
        assert (kind, [case.name for case in cases]) == ("test", ["z"])

    def test_the_runs_own_validation_cases(self, tmp_path, model):
        data = read_dataset(write_dataset(tmp_path / "three", training=("a", "b", "c"), test=("z",)))
        folds = {"folds": [{"val": ["a"]}, {"val": ["c"]}, {"val": ["b"]}]}
        run = tmp_path
        (run / "splits.json").write_text(json.dumps(folds))
        (run / "config.yaml").write_text("fold: 1\n")
        assert validation_names(run) == {"c"}
        ours = read_card(model).model_copy(update={"provenance": Provenance(dataset="toy")})
        kind, cases = choose_cases(data, model, ours)
        assert (kind, [case.name for case in cases]) == ("validation", ["c"])
        # Another dataset's case of the same name is no validation case.
        other = ours.model_copy(update={"provenance": Provenance(dataset="toys")})
        assert choose_cases(data, model, other)[0] == "test"
        (run / "config.yaml").write_text("fold: 7\n")
        assert validation_names(run) == frozenset()
        (run / "splits.json").write_text(json.dumps({"folds": [{"val": ["a"]}]}))
        (run / "config.yaml").write_text("fold: 0\n")
        assert validation_names(run) == frozenset()  # its only case was trained on

    def test_no_labels_no_curve(self, dataset, model):
        data = replace(read_dataset(dataset), training=(), test=())
        with pytest.raises(DatasetError) as caught:
            choose_cases(data, model, read_card(model))
        assert caught.value.code == "no-labels"


class TestNumbers:
    """Means, noise and pairing, by hand."""

    def test_mean_dice_counts_every_structure_the_same(self):
        nan = float("nan")
        assert mean_dice([[1.0, nan, 0.2], [0.5, nan, nan]]) == pytest.approx((0.75 + 0.2) / 2)
        assert mean_dice([[nan, nan]]) == 0.0

    def test_noise_is_that_of_the_differences(self):
        own = [[0.5, 0.9, float("nan")], [0.1, 0.2, 0.3]]
        assert difference_noise(own, own) == 0.0
        shifted = [[value + 0.1 for value in row] for row in own]
        assert difference_noise(shifted, own) == pytest.approx(0.0, abs=1e-12)
        assert difference_noise([[0.6, 0.9, 1.0], [0.1, 0.2, 0.3]], own) == pytest.approx(
            0.1 * math.sqrt(0.2) / math.sqrt(5)
        )
        assert difference_noise([[0.6]], [[0.5]]) is None

    def test_pairing_takes_a_busy_machine_out(self):
        """The machine is three times slower in two of five rounds; the ratio stays 2."""
        busy = [1.0, 3.0, 1.0, 3.0, 1.0]
        seconds = [[2.0 * factor for factor in busy], list(busy)]
        seconds[0][0] = 9.0
        assert paired_medians(seconds, own=1) == [2.0, 1.0]

    def test_every_round_runs_all_and_begins_elsewhere(self, model, monkeypatch):
        seen = []

        def one(run, _):
            seen.append(run.keywords["selection"].keep_ratios[0])
            return float(len(seen))

        monkeypatch.setattr(calibrate_module, "time_once", one)
        settings = [(ratio,) * 3 for ratio in (0.1, 0.5, 1.0)]
        seconds = time_settings(Predictor.from_folder(model), settings, rounds=3)
        assert seen[3:] == [0.1, 0.5, 1.0, 0.5, 1.0, 0.1, 1.0, 0.1, 0.5]
        assert seconds == [[4.0, 9.0, 11.0], [5.0, 7.0, 12.0], [6.0, 8.0, 10.0]]

    def test_regions_are_scored_as_regions(self, model):
        card = read_card(model).model_copy(update={"regions": {"whole": (1, 2), "core": (2,)}})
        reference = np.array([0, 1, 1, 2]).reshape(4, 1, 1)
        predicted = np.array([0, 1, 2, 2]).reshape(4, 1, 1)
        assert structure_dice(predicted, reference, card) == pytest.approx([1.0, 2 / 3])
        plain = read_card(model)
        assert structure_dice(predicted, reference, plain) == pytest.approx([2 / 3, 2 / 3])


def test_the_picture_shows_every_point_and_marks_the_own():
    axes = curve_figure(usual()).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.1", "0.25", "0.5", "1"]
    line = axes.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0.4, 0.9, 1.9, 3.9])
    np.testing.assert_allclose(line.get_ydata(), [0.60, 0.70, 0.80, 0.85])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["setting of the model"]


def test_one_window_is_timed_with_the_ratio_asked_for(model):
    """With real runs: the network that is timed gives the logits of that ratio."""
    predictor = Predictor.from_folder(model)
    window = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        dense = predictor.network((1.0,) * 3)(window)
        assert not torch.equal(dense, predictor.network(None)(window))
    (values,) = time_settings(predictor, [(0.5,) * 3], rounds=2)
    assert len(values) == 2
    assert min(values) > 0
