"""From file to file: labels lie where the structures lie, in millimetres, on the input's own grid."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from predict.grids import stored_as, turned
from predict.threshold_model import BRATS, exceed, threshold_predictor, tiny_card, tiny_net
from sparseg.errors import NumericsError, VolumeError
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.case import WINDOW_PARTS
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.io import read_labels
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

SHAPE = (22, 19, 17)


def predict(predictor, image, folder):
    """Write the image, segment it, return the label file as nibabel reads it."""
    write_image(folder / "case.nii.gz", image)
    predictor.predict_file(folder / "case.nii.gz", folder / "out" / "case.nii.gz")
    return nib.load(folder / "out" / "case.nii.gz")


def ids_of(file):
    return np.asarray(file.dataobj)


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("crop", [True, False], ids=["crop", "no crop"])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_without_resampling_every_label_is_right(monkeypatch, tmp_path, crop, overlap):
    image, truth = make_phantom(SHAPE, seed=1)
    settings = PredictSettings(overlap=overlap, batch_size=3)
    predictor = threshold_predictor(monkeypatch, settings, foreground_crop=crop)
    file = predict(predictor, image, tmp_path)
    np.testing.assert_array_equal(ids_of(file), truth.array[0])
    np.testing.assert_allclose(file.affine, image.affine, atol=1e-6)
    assert file.get_data_dtype() == np.uint8


@pytest.mark.parametrize("spacing", [(1.0, 1.3, 1.0), (2.0, 2.0, 2.0), (0.8, 2.2, 1.5)])
@pytest.mark.parametrize("degrees", [(0.0, 0.0, 0.0), (12.0, -20.0, 9.0)], ids=["aligned", "oblique"])
def test_resampled_labels_are_off_by_half_a_model_voxel_at_most(monkeypatch, tmp_path, spacing, degrees):
    image, truth = make_phantom((28, 30, 20), num_classes=2, seed=2)
    image = turned(stored_as(image, (2, 0, 1), (1, -1, 1)), degrees)
    truth = stored_as(truth, (2, 0, 1), (1, -1, 1)).array[0] == 1
    file = predict(threshold_predictor(monkeypatch, spacing=spacing), image, tmp_path)
    found = ids_of(file) == 1
    assert dice(found, truth) >= 0.95
    np.testing.assert_allclose(file.affine, image.affine, atol=1e-6)
    # Distance from each voxel centre to the nearest one of the other kind, in mm.
    depth = distance_transform_edt(truth, image.spacing) + distance_transform_edt(~truth, image.spacing)
    wrong = depth[found != truth]
    # The border lies up to half an original voxel before the nearest centre of the other kind.
    allowed = np.linalg.norm(np.add(spacing, image.spacing)) / 2
    assert wrong.size == 0 or wrong.max() <= allowed


@pytest.mark.parametrize("spacing", [(0.9, 1.3, 1.1), (2.2, 1.7, 3.1)], ids=["finer", "coarser"])
def test_a_plane_is_cut_at_its_millimetre(monkeypatch, tmp_path, spacing):
    """Intensity that rises linearly over the patient survives any resampling, so the cut has no tolerance."""
    affine = turned(
        Volume(np.zeros((1, 1, 1, 1)), np.diag([-1.5, 1.0, 2.0, 1.0])), (15.0, -10.0, 25.0)
    ).affine
    shape = (26, 30, 18)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centre = voxel_to_world(affine, (np.array(shape) - 1) / 2)
    normal = np.array([0.6, -0.64, 0.48])
    height_mm = (voxel_to_world(affine, grid) - centre) @ normal
    image = Volume((50 + 2 * height_mm)[None].astype(np.float32), affine)
    predictor = threshold_predictor(monkeypatch, spacing=spacing, foreground_crop=False)
    found = ids_of(predict(predictor, image, tmp_path))
    # Beyond the outer centres of the model grid a value is held, not continued.
    reach = [int(np.ceil(2 * max(spacing) / edge)) for edge in image.spacing]
    inside = tuple(slice(r, n - r) for r, n in zip(reach, shape, strict=True))
    clear = np.abs(height_mm[inside]) > 1e-3
    np.testing.assert_array_equal(found[inside][clear], (height_mm[inside] > 0)[clear])
    assert 0.2 < np.mean(found[inside]) < 0.8


@pytest.mark.parametrize("shape", [(3, 3, 3), (24, 20, 1), (1, 1, 1), (40, 5, 3)])
@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)], ids=["own spacing", "2 mm"])
def test_n11_tiny_and_thin_images(monkeypatch, tmp_path, shape, spacing):
    array = np.zeros((1, *shape), np.float32)
    array[:, shape[0] // 2 :] = 100
    image = Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    file = predict(threshold_predictor(monkeypatch, spacing=spacing), image, tmp_path)
    np.testing.assert_array_equal(ids_of(file), array[0] / 100)


def test_an_image_without_foreground_gives_only_background(monkeypatch, tmp_path):
    image = Volume(np.full((1, 9, 8, 7), -50.0, np.float32), np.eye(4))
    assert not ids_of(predict(threshold_predictor(monkeypatch), image, tmp_path)).any()


def test_names_and_volumes_of_the_labels(monkeypatch, tmp_path):
    image, truth = make_phantom(SHAPE, seed=1)
    predictor = threshold_predictor(monkeypatch)
    write_image(tmp_path / "case.nii.gz", image)
    result = predictor.predict_file(tmp_path / "case.nii.gz", tmp_path / "labels.nii.gz")
    (extension,) = nib.load(tmp_path / "labels.nii.gz").header.extensions
    content = json.loads(extension.text)
    assert content["labels"] == {"0": "background", "1": "liver", "2": "tumor"}
    assert content.keys() == {"labels", "colours"}
    voxel_ml = 1.5 * 1.0 * 2.0 / 1000
    counts = np.bincount(truth.array.ravel())
    assert result.volumes_ml == pytest.approx(
        {"liver": counts[1] * voxel_ml, "tumor": counts[2] * voxel_ml}, abs=1e-3
    )
    steps = ["read", "prepare", "windows", *WINDOW_PARTS, "finish", "statistics", "write"]
    assert list(result.seconds) == steps
    assert result.total_seconds == pytest.approx(
        sum(result.seconds[name] for name in steps if name not in WINDOW_PARTS)
    )


def test_progress_counts_every_window(monkeypatch, tmp_path):
    image, _ = make_phantom((32, 28, 24), seed=1)
    predictor = threshold_predictor(monkeypatch, PredictSettings(batch_size=5), foreground_crop=False)
    write_image(tmp_path / "case.nii.gz", image)
    seen = []
    result = predictor.predict_file(
        tmp_path / "case.nii.gz",
        tmp_path / "l.nii.gz",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    # Windows of 16 at steps of 8: 3 x 3 x 2.
    assert result.num_windows == 18
    assert seen == [(5, 18), (10, 18), (15, 18), (18, 18)]


def test_overlapping_regions(monkeypatch, tmp_path):
    image, truth = make_phantom(SHAPE, num_classes=4, seed=3)
    monkeypatch.setattr(SparseUNETR, "forward", exceed)
    net = tiny_net()
    names = {0: "background", 1: "oedema", 2: "necrosis", 3: "enhancing tumour"}
    # The phantom's class 3 has intensity 300, the upper end of the mapping.
    predictor = Predictor(net, tiny_card(net, labels=names, regions=BRATS))
    np.testing.assert_array_equal(ids_of(predict(predictor, image, tmp_path)), truth.array[0])


def test_two_channels_reach_the_network_in_order(monkeypatch, tmp_path):
    image, truth = make_phantom(SHAPE, seed=1)
    two = Volume(np.concatenate([image.array, np.full_like(image.array, 70)]), image.affine)
    second = []

    def forward(_net, windows):
        second.append(windows[:, 1])
        intensity = windows[:, :1] * 200 + 100
        centres = 100.0 * torch.arange(3).reshape(1, -1, 1, 1, 1)
        return 2 * intensity * centres - centres**2

    monkeypatch.setattr(SparseUNETR, "forward", forward)
    net = tiny_net(in_channels=2)
    predictor = Predictor(net, tiny_card(net, channels=("CT", "map"), foreground_crop=False))
    np.testing.assert_array_equal(ids_of(predict(predictor, two, tmp_path)), truth.array[0])
    torch.testing.assert_close(torch.cat(second), torch.full_like(torch.cat(second), (70 - 100) / 200))
    write_image(tmp_path / "one.nii.gz", image)
    with pytest.raises(VolumeError, match=r"2 channel\(s\): CT, map; received 1") as error:
        predictor.predict_file(tmp_path / "one.nii.gz", tmp_path / "none.nii.gz")
    assert error.value.code == "channel-count"
    assert not (tmp_path / "none.nii.gz").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a1_one_bad_logit_gives_no_output(monkeypatch, tmp_path, value):
    image, _ = make_phantom(SHAPE, seed=1)
    write_image(tmp_path / "case.nii.gz", image)
    predictor = threshold_predictor(monkeypatch)
    honest = SparseUNETR.forward

    def forward(net, windows):
        logits = honest(net, windows)
        logits[0, 1, 3, 4, 5] = value
        return logits

    monkeypatch.setattr(SparseUNETR, "forward", forward)
    with pytest.raises(NumericsError, match="every logit must be finite"):
        predictor.predict_file(tmp_path / "case.nii.gz", tmp_path / "out" / "case.nii.gz")
    assert not (tmp_path / "out").exists()


def test_real_network_from_disk_equals_the_one_saved(model_folder, tmp_path):
    """The folder's network, run by hand on one window, gives the labels that the predictor writes."""
    image, _ = make_phantom((16, 16, 16), spacing=(1.0, 1.0, 1.0), seed=4)
    predictor = Predictor.from_folder(model_folder)
    file = predict(predictor, image, tmp_path)
    prepared = (image.array.clip(-100, 300) + 100) / 200 - 1
    with torch.inference_mode():
        logits = tiny_net()(torch.from_numpy(prepared)[None])
    foreground = ids_of(file)
    expected = logits[0].argmax(dim=0).numpy()
    assert np.count_nonzero(foreground != expected) == 0
    assert read_labels(tmp_path / "out" / "case.nii.gz").array.max() <= 2


@pytest.mark.parametrize("settings", [PredictSettings(batch_size=2), PredictSettings(batch_size=7)])
def test_a3_batch_size_changes_no_label(model_folder, tmp_path, settings):
    image, _ = make_phantom((24, 20, 17), seed=5)
    one = ids_of(predict(Predictor.from_folder(model_folder), image, tmp_path))
    many = ids_of(predict(Predictor.from_folder(model_folder, settings), image, tmp_path))
    assert np.mean(one != many) <= 1e-4
    assert len(np.unique(one)) > 1
