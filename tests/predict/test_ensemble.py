"""Several models as one: identities, means by value, and what does not go together."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from predict.threshold_model import save_tiny_model, tiny_card, tiny_net
from sparseg.checkpoints.folder import save_model
from sparseg.errors import CheckpointError
from sparseg.models.build import build_segmenter
from sparseg.predict.ensemble import Ensemble, MeanProbabilities, find_models, load_predictor
from sparseg.predict.predictor import Predictor
from sparseg.predict.run_report import report_header, write_report
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

SETTINGS = PredictSettings(overlap=0.25)


def save_model_of_seed(folder, seed, **changes):
    """A tiny model with other weights, sharp enough that the models disagree."""
    torch.manual_seed(seed)
    net = build_segmenter("test_tiny").eval()
    for value in net.parameters():
        value.data *= 1.5
    save_model(folder, net, tiny_card(net, **changes))
    return folder


@pytest.fixture(scope="module")
def image():
    return make_phantom((20, 18, 16), seed=4)[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [save_model_of_seed(root / f"seed{seed}", seed, foreground_crop=False) for seed in range(3)]


def slow_mean(logits, *, regions):
    """The mean of the probabilities, in float64."""
    kind = torch.sigmoid if regions else lambda value: value.softmax(dim=0)
    return sum(kind(one.double()) for one in logits) / len(logits)


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_mean_is_that_of_the_probabilities(regions, count):
    generator = torch.Generator().manual_seed(count)
    logits = [8 * torch.randn(4, 5, 6, 35, generator=generator) for _ in range(count)]
    wanted = slow_mean(logits, regions=regions)
    mean = MeanProbabilities(regions=regions)
    for one in logits:
        mean.add(one.clone())
    found = mean.logits().double()
    found = found.sigmoid() if regions else found.softmax(dim=0)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_extreme_logits_stay_finite_and_ordered(regions):
    """Probabilities of exp(-300) are zero in float32; their logarithms are not."""
    mean = MeanProbabilities(regions=regions)
    for _ in range(2):
        mean.add(torch.tensor([300.0, -300.0, -299.0]).reshape(3, 1, 1, 1))
    found = mean.logits().flatten()
    assert found.isfinite().all()
    assert found.argsort().tolist() == [1, 2, 0]


def test_one_model_is_that_model_itself(models, image):
    alone = load_predictor(models[:1], SETTINGS)
    assert type(alone) is Predictor
    plain = Predictor.from_folder(models[0], SETTINGS)
    np.testing.assert_array_equal(alone.predict_volume(image)[0], plain.predict_volume(image)[0])


def test_equal_models_are_one(models, image):
    plain = Predictor.from_folder(models[0], SETTINGS)
    twice = Ensemble([plain, Predictor.from_folder(models[0], SETTINGS)])
    expected, result = plain.predict_volume(image)
    found, doubled = twice.predict_volume(image)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(found, expected)
    assert doubled.num_windows == 2 * result.num_windows


def test_several_models_decide_by_their_mean(models, image):
    ensemble = load_predictor(models, SETTINGS)
    logits = [member.predict_prepared(image) for member in ensemble.members]
    wanted = slow_mean(logits, regions=False)
    steps = []
    found = ensemble.predict_prepared(image, on_progress=lambda *now: steps.append(now))
    torch.testing.assert_close(found.double().softmax(dim=0), wanted, atol=1e-6, rtol=1e-5)
    total = ensemble.num_windows(image)
    assert steps == [(number, total) for number in range(1, total + 1)]
    # The models disagree, or this would show nothing.
    assert len({one.argmax(dim=0).numpy().tobytes() for one in logits}) == 3


def test_what_differs_is_refused(tmp_path, models):
    other = save_tiny_model(tmp_path / "other", spacing=(2.0, 2.0, 2.0))
    with pytest.raises(CheckpointError, match=r"same preprocess.*other") as caught:
        load_predictor([models[0], other])
    assert caught.value.code == "ensemble-differs"
    names = {0: "background", 1: "spleen", 2: "tumor"}
    other = save_tiny_model(tmp_path / "b", foreground_crop=False, labels=names)
    with pytest.raises(CheckpointError, match="same labels"):
        load_predictor([models[0], other])
    with pytest.raises(CheckpointError, match="in an ensemble once"):
        load_predictor([models[0], models[0]])


def test_networks_of_other_sizes_go_together(tmp_path, models, image):
    torch.manual_seed(1)
    net = tiny_net(keep_ratio=1.0, feature_size=3)
    save_model(tmp_path / "dense", net, tiny_card(net, foreground_crop=False))
    ensemble = load_predictor([models[0], tmp_path / "dense"], SETTINGS)
    wanted = slow_mean([one.predict_prepared(image) for one in ensemble.members], regions=False)
    found = ensemble.predict_prepared(image).double().softmax(dim=0)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.fixture
def folds(tmp_path):
    """A finished cross-validation of three folds, as far as predicting goes."""
    run = tmp_path / "cv"
    for number in range(3):
        save_model_of_seed(run / f"fold_{number}" / "best", number)
    (run / "splits.json").write_text(json.dumps({"folds": [{"val": [name]} for name in "abc"]}))
    return run


def test_folds_of_a_cross_validation_are_found(folds, models):
    assert find_models(folds) == [folds / f"fold_{number}" / "best" for number in range(3)]
    assert find_models(folds / "fold_1") == [folds / "fold_1" / "best"]
    assert find_models(models[0]) == [models[0]]


def test_a_missing_fold_is_refused(folds):
    (folds / "fold_2").rename(folds / "set_aside")
    with pytest.raises(CheckpointError, match=r"no fold 2; finish it"):
        find_models(folds)


def test_the_report_names_all_models(folds, tmp_path):
    ensemble = load_predictor([folds], SETTINGS)
    write_report(tmp_path, report_header(ensemble), [])
    rows = json.loads((tmp_path / "report.json").read_text())["models"]
    assert [row["model"] for row in rows] == [str(folds / f"fold_{n}" / "best") for n in range(3)]
    assert len({row["weights_sha256"] for row in rows}) == 3
    assert {row["overlap"] for row in rows} == {0.25}


def test_predict_command_takes_a_cross_validation_or_several_models(folds, tmp_path, image):
    from sparseg.cli.main import run

    write_image(tmp_path / "scan.nii.gz", image)
    single = [f"--model={folds / f'fold_{number}'}" for number in range(3)]
    ways = {"whole": [f"--model={folds}"], "parts": single}
    for name, options in ways.items():
        assert run(["predict", str(tmp_path / "scan.nii.gz"), *options, f"--out={tmp_path / name}"]) == 0
    whole, parts = (np.asarray(nib.load(tmp_path / name / "scan.nii.gz").dataobj) for name in ways)
    np.testing.assert_array_equal(whole, parts)
