"""Rows L1 to L5: labels and pairs that must not pass."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from predict.threshold_model import save_tiny_model
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.duplicates import find_duplicates, require_no_leak
from sparseg.datasets.facts import measure
from sparseg.datasets.load import load_case
from sparseg.errors import CheckpointError, ConfigError, DatasetError, GeometryError, LabelError, SparsegError
from sparseg.predict.ensemble import load_predictor
from sparseg.predict.settings import PredictSettings
from sparseg.preprocessing.config import MRIntensity, PreprocessConfig
from sparseg.preprocessing.pipeline import prepare
from sparseg.preprocessing.restore import restore_label_map
from sparseg.training import log
from sparseg.volumes.io import read_volume
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume
from training.toy import run_toy, write_toy_dataset

NAMES = {0: "background", 1: "liver", 2: "tumor"}


@pytest.fixture
def case(tmp_path):
    image, labels = make_phantom((12, 10, 9), spacing=(1.5, 1.0, 2.0), num_classes=3, seed=0)
    write_image(tmp_path / "image.nii.gz", image)
    write_label_map(tmp_path / "label.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    return Case("image", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")


def load(case):
    return load_case(case, Dataset("toy", ("CT",), NAMES, (case,), (), case.image.parent))


@pytest.mark.hazard("L1", "silent accepts")
@pytest.mark.parametrize("bad", [300, -1, 0.9999, np.nan])
def test_l1_bad_ids_are_refused_with_counts(case, bad):
    file = nib.load(case.label)
    values = np.asarray(file.dataobj).astype(np.float32)
    values[2:4, 3, 3] = bad
    nib.save(nib.Nifti1Image(values, file.affine), case.label)
    with pytest.raises(LabelError, match=r"2 voxels") as error:
        load(case)
    assert str(case.label) in str(error.value)


@pytest.mark.hazard("L2", "empty labels refused")
def test_l2_empty_label_is_allowed(case):
    file = nib.load(case.label)
    nib.save(nib.Nifti1Image(np.zeros(file.shape, np.uint8), file.affine), case.label)
    _, labels = load(case)
    assert not labels.array.any()


def moved(affine, what):
    affine = affine.copy()
    if what == "+10 mm":
        affine[0, 3] += 10
    elif what == "left-right":
        affine[0] *= -1
    elif what == "spacing x 1.01":
        affine[:3, 2] *= 1.01
    return affine


@pytest.mark.hazard("L3", "silent accepts")
@pytest.mark.parametrize("what", ["+10 mm", "left-right", "shape + 1", "spacing x 1.01"])
def test_l3_grids_that_differ_are_refused(case, what):
    image, labels = load(case)
    array = labels.array
    if what == "shape + 1":
        array = np.pad(array, ((0, 0), (0, 0), (0, 0), (0, 1)))
    other = Volume(array, moved(labels.affine, what))
    with pytest.raises(GeometryError):
        prepare(image, PreprocessConfig(intensity=MRIntensity()), labels=other)
    write_label_map(case.label, array[0].astype(np.uint8), other.affine)
    with pytest.raises(GeometryError) as error:
        load(case)
    assert "image.nii.gz" in str(error.value)
    assert "label.nii.gz" in str(error.value)


@pytest.mark.parametrize("spacing", [(0.7, 1.3, 2.0), (3.0, 3.0, 3.0), (5.0, 0.5, 1.0)])
def test_l4_no_id_is_invented(spacing, figure):
    rng = np.random.default_rng(1)
    affine = np.diag([1.5, -1.0, 2.0, 1.0])
    labels = Volume(rng.choice(np.array([0, 1, 7], np.int32), (1, 12, 10, 9)), affine)
    image = Volume(rng.normal(size=(1, 12, 10, 9)), affine)
    _, prepared, record = prepare(
        image, PreprocessConfig(spacing=spacing, intensity=MRIntensity()), labels=labels
    )
    restored = restore_label_map(prepared.array[0], record)
    new = {*np.unique(prepared.array), *np.unique(restored)} - {0, 1, 7}
    figure("L4", "new ids", len(new), limit=0)
    assert new == set()


@pytest.mark.hazard("L4", "classes or channels that changed their meaning unseen")
@pytest.mark.parametrize("what", ["labels", "channels"])
def test_l4_a_run_goes_on_with_its_own_classes_only(tmp_path, monkeypatch, what):
    """Names are stored with the weights; a dataset.json edited in the meantime does not rename them."""
    monkeypatch.setattr(log, "draw", lambda _: None)
    data = write_toy_dataset(tmp_path / "data", 2)
    run_toy(data, tmp_path / "run", max_steps=1)
    card = (tmp_path / "run" / "last" / "model.json").read_bytes()
    assert json.loads(card)["labels"] == {"0": "background", "1": "liver", "2": "tumor"}
    content = json.loads((data / "dataset.json").read_text())
    if what == "labels":
        content["labels"] |= {"1": "tumor", "2": "liver"}
    else:
        content["channel_names"] = {"0": "MR"}
    (data / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"go on with the {what}") as error:
        run_toy(data, tmp_path / "run", resume=True, max_steps=2)
    assert error.value.code == "resume-differs"
    assert (tmp_path / "run" / "last" / "model.json").read_bytes() == card


@pytest.mark.hazard("L4", "classes or channels that changed their meaning unseen")
def test_l4_models_with_other_names_vote_together_in_nothing(tmp_path):
    folders = [
        save_tiny_model(tmp_path / "a"),
        save_tiny_model(tmp_path / "b", labels={0: "background", 1: "tumor", 2: "liver"}),
    ]
    with pytest.raises(CheckpointError, match="must have the same labels"):
        load_predictor(folders, PredictSettings())


@pytest.mark.hazard("L5", "leaks not seen")
def test_l5_one_image_under_two_names_is_a_leak(case, tmp_path):
    copy = tmp_path / "renamed.nii"
    write_image(copy, load(case)[0])
    other = tmp_path / "other.nii.gz"
    write_image(other, make_phantom((12, 10, 9), spacing=(1.5, 1.0, 2.0), num_classes=3, seed=5)[0])
    shutil.copy(case.label, tmp_path / "label2.nii.gz")
    double, fresh = Case("renamed", (copy,)), Case("other", (other,))
    hashes = {c.name: measure(read_volume(c.image), None).image_hash for c in (case, fresh, double)}
    assert find_duplicates([case, fresh, double], hashes) == [(case, double)]
    with pytest.raises(DatasetError, match=r"image\.nii\.gz = .*renamed\.nii") as error:
        require_no_leak([case], [fresh, double], hashes)
    assert isinstance(error.value, SparsegError)
    require_no_leak([case], [fresh], hashes)
    require_no_leak([case], [case], hashes)
