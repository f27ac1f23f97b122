"""The speed dial: what a deadline chooses, by value, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from predict.curves import curve, point, usual
from predict.threshold_model import save_tiny_model, tiny_card, tiny_net
from sparseg.benchmark import calibrate
from sparseg.checkpoints.folder import read_card, save_model
from sparseg.errors import CheckpointError, ConfigError, ResourceError
from sparseg.models.build import build_segmenter
from sparseg.predict import dial as dial_module
from sparseg.predict.calibration import write_calibration
from sparseg.predict.dial import MARGIN, SpeedDial, common_settings, time_window
from sparseg.predict.ensemble import Ensemble, load_predictor
from sparseg.predict.predictor import Predictor
from sparseg.predict.ratios import stage_ratios, token_counts, with_ratios
from sparseg.predict.settings import PredictSettings
from sparseg.tokens.stages import Selection
from sparseg.volumes.phantoms import make_phantom


def choose(dial, windows=(10,), voxels=1_000_000, spent=1.0):
    return dial.choose(windows, num_voxels=voxels, spent=spent)


class TestRatios:
    """One ratio for all stages or one for each, in place of the model's own."""

    def test_one_for_all_or_one_each(self):
        net = tiny_net()
        assert stage_ratios(net, None) is None
        assert stage_ratios(net, (0.25,)) == (0.25, 0.25, 0.25)
        assert stage_ratios(net, (0.5, 0.25, 1.0)) == (0.5, 0.25, 1.0)
        assert token_counts(net) == [64, 32, 16, 8]
        assert token_counts(net, (0.5, 0.25, 1.0)) == [64, 32, 8, 8]

    @pytest.mark.parametrize(
        ("wanted", "code"),
        [
            ((0.0,), "keep-ratio-range"),
            ((1.01,), "keep-ratio-range"),
            ((float("nan"),), "keep-ratio-range"),
            ((0.5, 0.5), "keep-ratio-stages"),
            ((), "keep-ratio-stages"),
        ],
    )
    def test_out_of_range(self, wanted, code):
        with pytest.raises(ConfigError) as caught:
            stage_ratios(tiny_net(), wanted, where="models/a")
        assert caught.value.code == code
        assert caught.value.where == "models/a"

    def test_dense_models_and_stages_without_tokens(self):
        with pytest.raises(ConfigError, match="dense") as caught:
            stage_ratios(build_segmenter("test_tiny", pruning_stages=()), (0.5,))
        assert caught.value.code == "keep-ratio-dense"
        with pytest.raises(ConfigError, match="at least one token"):
            stage_ratios(tiny_net(count_rule="published"), (0.01,))

    def test_the_network_is_called_with_them(self):
        net, image = tiny_net(), torch.randn(1, 1, 16, 16, 16)
        with torch.inference_mode():
            own, few = net(image), net(image, selection=Selection(keep_ratios=(0.1, 0.1, 0.1)))
            assert torch.equal(with_ratios(net, None)(image), own)
            assert torch.equal(with_ratios(net, (0.1, 0.1, 0.1))(image), few)
        assert not torch.equal(own, few)


class TestChoice:
    """10 windows; 1 s spent, 2 s to come: 8, 13, 23 and 43 s with 0.1, 0.25, 0.5 and 1."""

    @pytest.mark.parametrize(
        ("deadline", "ratio", "seconds"),
        [(60, 1.0, 43.0), (43 * MARGIN - 0.1, 0.5, 23.0), (20, 0.25, 13.0), (9, 0.1, 8.0)],
    )
    def test_best_that_fits(self, deadline, ratio, seconds):
        found = choose(SpeedDial([usual()], deadline, [1.9], device="cpu"))
        assert found.fits
        assert found.keep_ratios == ((ratio, ratio),)
        assert found.predicted == pytest.approx(seconds)

    def test_none_fits_takes_the_fastest_and_says_so(self):
        found = choose(SpeedDial([usual()], 5, [1.9], device="cpu"))
        assert not found.fits
        assert found.keep_ratios == ((0.1, 0.1),)
        assert found.predicted == pytest.approx(8.0)

    def test_more_tokens_that_are_no_better_are_not_taken(self):
        falling = curve(point(0.1, 0.7, 0.4), point(0.5, 0.8, 1.9, own=True), point(1.0, 0.75, 3.9))
        assert choose(SpeedDial([falling], 600, [1.9], device="cpu")).keep_ratios == ((0.5, 0.5),)
        equal = curve(point(0.1, 0.8, 0.4), point(0.5, 0.8, 1.9, own=True))
        assert choose(SpeedDial([equal], 600, [1.9], device="cpu")).keep_ratios == ((0.1, 0.1),)

    def test_a_machine_twice_as_slow(self):
        found = choose(SpeedDial([usual()], 100, [3.8], device="cpu"))
        assert found.predicted == pytest.approx(1 + 2 * 2 + 2 * 40)
        # A GPU's speed says nothing about how fast files are written.
        found = choose(SpeedDial([usual()], 100, [0.19], device="cuda"))
        assert found.predicted == pytest.approx(1 + 2 + 0.1 * 40)

    def test_several_models_share_a_ratio_and_their_times_add_up(self):
        three = {"keep_ratios": (0.25,) * 3}
        other = curve(point(0.25, 0.5, 2.9, **three), point(None, 0.9, 3.9, own=True))
        assert [tuple(p.name for p in found) for found in common_settings([usual(), other])] == [
            ("0.5", "own counts"),
            ("0.25", "0.25"),
        ]
        found = choose(SpeedDial([usual(), other], 60, [1.9, 3.9], device="cpu"), windows=(10, 5))
        assert found.predicted == pytest.approx(1 + 2 + 10 * 2.0 + 5 * 4.0)
        assert found.keep_ratios == ((0.5, 0.5), None)
        assert found.dice == pytest.approx(0.85)
        found = choose(SpeedDial([usual(), other], 40, [1.9, 3.9], device="cpu"), windows=(10, 5))
        assert found.keep_ratios == ((0.25, 0.25), (0.25, 0.25, 0.25))


def test_a_window_is_timed_after_warming_up(monkeypatch):
    times = iter([90.0, 3.0, 1.0, 2.0])
    seen = []
    monkeypatch.setattr(dial_module, "time_once", lambda _, window: seen.append(window) or next(times))
    assert time_window(lambda window: window, 2, (8, 4, 4), batch_size=2, device="cpu") == 1.0
    assert {tuple(window.shape) for window in seen} == {(2, 2, 8, 4, 4)}


def test_windows_are_timed_with_the_memory_settings_of_prediction(monkeypatch):
    """Without them a window took a quarter longer than in prediction, and too few tokens were chosen."""
    inside, seen = [], []

    @contextmanager
    def entered():
        inside.append(True)
        yield
        inside.pop()

    monkeypatch.setattr(dial_module, "memory_reused", entered)
    monkeypatch.setattr(calibrate, "memory_reused", entered)
    time_window(lambda _: seen.append(bool(inside)), 1, (4, 4, 4), batch_size=1, device="cpu")
    predictor = Mock(card=tiny_card(tiny_net()), settings=PredictSettings())
    predictor.network = lambda _: lambda _: seen.append(bool(inside))
    calibrate.time_settings(predictor, [None, (0.5, 0.5, 0.5)], rounds=2)
    assert len(seen) >= 8
    assert all(seen)
    assert not inside


def test_a_window_is_timed_with_as_many_as_fit():
    seen = []

    def run(windows):
        seen.append(len(windows))
        if len(windows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert time_window(run, 1, (4, 4, 4), batch_size=6, device="cpu") > 0
    assert seen == [6, 3, 1, 1, 1, 1]

    def never(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ResourceError, match=r"one window must fit.*--device cpu"):
        time_window(never, 1, (4, 4, 4), batch_size=2, device="cpu")
    with pytest.raises(RuntimeError, match="another fault"):
        time_window(Mock(side_effect=RuntimeError("another fault")), 1, (4, 4, 4), batch_size=2, device="cpu")


@pytest.fixture(scope="module")
def image():
    return make_phantom((20, 18, 16), seed=4)[0]


class TestPredictor:
    """What the settings do to a prediction."""

    def test_keep_ratios_change_logits_and_token_counts(self, model_folder, image):
        plain = Predictor.from_folder(model_folder)
        few = Predictor.from_folder(model_folder, PredictSettings(keep_ratios=(0.1,)))
        assert plain.token_counts() == [64, 32, 16, 8]
        assert few.token_counts() == [64, 6, 1, 1]
        _, result = few.predict_volume(image)
        assert result.speed_row() == {
            "models": [{"keep_ratios": (0.1, 0.1, 0.1), "token_counts": (64, 6, 1, 1)}]
        }
        wanted = few.predict_prepared(image)
        assert not torch.equal(plain.predict_prepared(image), wanted)
        again = plain.run_windows(image, keep_ratios=[(0.1, 0.1, 0.1)])
        assert torch.equal(again.logits, wanted)
        same = Predictor.from_folder(model_folder, PredictSettings(keep_ratios=(0.5,)))
        assert torch.equal(plain.predict_prepared(image), same.predict_prepared(image))

    def test_both_at_once_or_no_curve_are_refused(self):
        net = tiny_net()
        card = tiny_card(net)
        for settings, curves, code in [
            (PredictSettings(keep_ratios=(0.5,), deadline=3.0), usual(), "deadline-and-ratio"),
            (PredictSettings(deadline=0.0), usual(), "deadline-range"),
            (PredictSettings(deadline=3.0), None, "no-calibration"),
        ]:
            with pytest.raises((ConfigError, CheckpointError)) as caught:
                Predictor(net, card, settings, curve=curves)
            assert caught.value.code == code

    def test_a_deadline_is_kept_per_case(self, tmp_path, image, monkeypatch):
        """A window of the own setting takes 1.9 s here, as when the curve was measured."""
        folder = save_tiny_model(tmp_path / "a", foreground_crop=False)
        three = [
            found.model_copy(update={"keep_ratios": (found.ratio,) * 3, "token_counts": (64, 1, 1, 1)})
            for found in usual().points
        ]
        stored = usual(points=three, weights_sha256=read_card(folder).weights_sha256)
        write_calibration(folder, stored)
        monkeypatch.setattr("sparseg.predict.predictor.time_window", lambda *_, **__: 1.9)
        # Two windows a side at overlap 0.5: 2 x 2 x 1.
        windows = Predictor.from_folder(folder).num_windows(image)
        assert windows == 4
        for deadline, ratio, fits in [(100.0, 1.0, True), (6.0, 0.25, True), (1.0, 0.1, False)]:
            predictor = Predictor.from_folder(folder, PredictSettings(deadline=deadline))
            labels, result = predictor.predict_volume(image)
            assert result.tokens[0].keep_ratios == (ratio,) * 3
            assert result.choice.fits == fits
            row = result.speed_row()["deadline"]
            assert row["seconds"] == deadline
            assert row["setting"] == ("best that fits" if fits else "fastest, none fits")
            plain = Predictor.from_folder(folder, PredictSettings(keep_ratios=(ratio,)))
            np.testing.assert_array_equal(labels, plain.predict_volume(image)[0])
        late = replace(result, seconds={"windows": 7.0, "encode": 6.0})
        assert late.speed_row()["deadline"]["real_seconds"] == 7.0
        assert not late.speed_row()["deadline"]["met"]

    def test_ensembles_take_them_for_all_members(self, tmp_path, image, monkeypatch):
        folders = [save_tiny_model(tmp_path / name, foreground_crop=False) for name in "ab"]
        net = tiny_net(pruning_stages=(1, 2))
        other = tmp_path / "c"
        save_model(other, net, tiny_card(net, foreground_crop=False))
        found = load_predictor([folders[0], other], PredictSettings(keep_ratios=(0.25,)))
        result = found.run_windows(image)
        assert [kept.keep_ratios for kept in result.tokens] == [(0.25,) * 3, (0.25,) * 2]
        assert [kept.token_counts for kept in result.tokens] == [(64, 16, 4, 1), (64, 16, 4)]

        monkeypatch.setattr("sparseg.predict.predictor.time_window", lambda *_, **__: 1.9)
        members = [Predictor.from_folder(folder, name=str(folder)) for folder in (folders[0], other)]
        settings = PredictSettings(deadline=10.0)
        first, second = (
            Predictor(one.net, one.card, settings, name=one.name, curve=usual()) for one in members
        )
        chosen = Ensemble([first, second])._dial.choose((2, 2), num_voxels=0, spent=0.0)
        assert chosen.predicted == pytest.approx(2 * 2 * 2.0)
        assert chosen.keep_ratios == ((0.5, 0.5), (0.5, 0.5))
