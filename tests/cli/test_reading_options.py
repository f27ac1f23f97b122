"""Refusals that the user can answer: each option makes its own refusal go away."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from hazards.dicom_faults import make_slices, save_series
from sparseg.volumes.phantoms import make_phantom

AFFINE = np.diag([1.5, 1.0, 2.0, 1.0])
FLIPPED = np.diag([-1.5, 1.0, 2.0, 1.0])


pytestmark = pytest.mark.usefixtures("classifying")


@pytest.fixture
def predict(sparseg, model_folder, tmp_path):
    """Return `predict(image, options...)` into the folder `out`."""

    def command(image, *options):
        return sparseg("predict", image, "--model", model_folder, "--out", tmp_path / "out", *options)

    return command


def save(path, *, qform=None, sform=None, nan=False):
    """Write a phantom with the given forms (code 0 where None); return its labels."""
    image, labels = make_phantom((12, 10, 9), seed=0)
    array = image.array[0].astype(np.float32)
    if nan:
        array[0, 0, 0] = np.nan
    file = nib.Nifti1Image(array, None)
    file.header.set_xyzt_units("mm")
    file.header.set_zooms((1.5, 1.0, 2.0))
    file.set_qform(qform, 1 if qform is not None else 0)
    file.set_sform(sform, 2 if sform is not None else 0)
    nib.save(file, path)
    return labels.array[0]


@pytest.mark.parametrize(("choice", "affine"), [("sform", FLIPPED), ("qform", AFFINE)])
def test_contradicting_forms(predict, tmp_path, choice, affine):
    truth = save(tmp_path / "a.nii", qform=AFFINE, sform=FLIPPED)
    predict(tmp_path / "a.nii").refused("a.nii", "--affine sform")
    assert not (tmp_path / "out").exists()
    assert predict(tmp_path / "a.nii", "--affine", choice).code == 0
    written = nib.load(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), truth)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["reading"]["affine_choice"] == choice


def test_no_orientation(predict, tmp_path):
    save(tmp_path / "a.nii")
    predict(tmp_path / "a.nii").refused("a.nii", "--assume-orientation")
    assert predict(tmp_path / "a.nii", "--assume-orientation", "LPS").code == 0
    written = nib.load(tmp_path / "out" / "a.nii.gz")
    assert nib.aff2axcodes(written.affine) == ("L", "P", "S")
    np.testing.assert_allclose(np.abs(np.diag(written.affine))[:3], (1.5, 1.0, 2.0), atol=1e-6)


def test_nan_voxels(predict, sparseg, tmp_path):
    save(tmp_path / "a.nii", sform=AFFINE, nan=True)
    predict(tmp_path / "a.nii").refused("a.nii", "1 of 1080 voxels", "--nonfinite")
    sparseg("info", tmp_path / "a.nii").refused("a.nii", "1 of 1080 voxels", "--nonfinite")
    assert predict(tmp_path / "a.nii", "--nonfinite", "0").code == 0
    assert sparseg("info", tmp_path / "a.nii", "--nonfinite", "0").code == 0


def test_one_of_several_series(predict, tmp_path):
    others = make_slices()
    for item in others:
        item.SeriesInstanceUID = "1.2.4"
    folder = save_series(tmp_path / "s", [*make_slices(), *others])
    predict(folder).refused("--series-uid", "1.2.4 (8 slices)")
    assert predict(folder, "--series-uid", "1.2.4").code == 0
    assert (tmp_path / "out" / "s.nii.gz").is_file()
