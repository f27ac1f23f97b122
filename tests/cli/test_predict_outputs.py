"""`sparseg predict` with clean-up and other formats, by the command's own options."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hazards.dicom_faults import save_series
from sparseg.volumes.dicom_labels import read_dicom_label_map
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom
from volumes.dicom_label_files import make_series

pytestmark = pytest.mark.usefixtures("classifying")


@pytest.fixture
def case(tmp_path):
    """Return an image file with a speck of class 2 in the corner, and its labels without the speck."""
    image, labels = make_phantom((16, 14, 12), seed=1)
    clean = labels.array[0].astype(np.uint8)
    assert not clean[:3, :3, :3].any()
    image.array[0, 1, 1, 1] = 200.0
    write_image(tmp_path / "a.nii.gz", image)
    return tmp_path / "a.nii.gz", clean


def test_clean_up_into_a_slicer_file(sparseg, model_folder, tmp_path, case):
    image, clean = case
    options = ["--largest-component", "liver", "--largest-component", "tumor", "--fill-holes", "all"]
    outcome = sparseg(
        "predict", image, "--model", model_folder, "--out", tmp_path / "out", *options,
        "--min-ml", "0.001", "--format", "seg.nrrd",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    np.testing.assert_array_equal(read_labels(tmp_path / "out/a.seg.nrrd").array[0], clean)
    report = json.loads((tmp_path / "out/report.json").read_text())
    wanted = {"largest_component": ["liver", "tumor"], "fill_holes": ["all"], "min_ml": 0.001}
    assert report["cleanup"] == wanted
    assert report["cases"][0]["cleanup"] == {"removed_ml": {"tumor": 0.003}, "filled_ml": {}}
    numbers = json.loads((tmp_path / "out/statistics.json").read_text())["cases"]["a"]
    assert numbers["tumor"]["voxels"] == np.count_nonzero(clean == 2)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--largest-component", "kidney"], "choose from: liver, tumor; or all"),
        (["--fill-holes", "liver", "--fill-holes", "x"], "choose from: liver, tumor; or all"),
        (["--min-ml", "-1"], "--min-ml 0.5"),
        (["--min-ml", "nan"], "--min-ml 0.5"),
    ],
)
def test_wishes_that_cannot_be_met_write_nothing(sparseg, model_folder, tmp_path, case, options, word):
    outcome = sparseg("predict", case[0], "--model", model_folder, "--out", tmp_path / "out", *options)
    assert outcome.code == 2
    assert word in outcome.err
    assert not (tmp_path / "out").exists()


def test_maps_beside_the_labels(sparseg, model_folder, tmp_path, case):
    out = tmp_path / "out"
    words = ["--save", "probabilities", "--save", "uncertainty", "--largest-component", "tumor"]
    outcome = sparseg("predict", case[0], "--model", model_folder, "--out", out, *words)
    assert (outcome.code, outcome.err) == (0, "")
    image = read_volume(case[0])
    chance, doubt = (read_volume(out / f"maps/a_{name}.nii.gz") for name in ("probabilities", "uncertainty"))
    for volume in (chance, doubt):
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)
    labels = read_labels(out / "a.nii.gz").array
    # The speck that clean-up took away is still in the maps, as the network saw it.
    assert labels[0, 1, 1, 1] == 0
    assert chance.array[:, 1, 1, 1].argmax() == 2
    labels[0, 1, 1, 1] = 2
    np.testing.assert_array_equal(
        np.take_along_axis(chance.array, labels, axis=0)[0], chance.array.max(axis=0)
    )
    np.testing.assert_allclose(doubt.array[0], 1 - chance.array.max(axis=0), atol=1.01 / 255)
    # The phantom's classes have intensities 0, 100 and 200; the logits give exp(-distance^2 / 1000).
    centre = np.argwhere((labels[0] == 1) & (np.abs(image.array[0] - 100) < 1))[0]
    weights = np.exp(-1e-3 * (image.array[(0, *centre)] - np.array([0.0, 100.0, 200.0])) ** 2)
    np.testing.assert_allclose(chance.array[(slice(None), *centre)], weights / weights.sum(), atol=0.51 / 255)


def test_maps_that_cannot_be_written_cost_the_labels_too(sparseg, model_folder, tmp_path, case):
    out = tmp_path / "out"
    out.mkdir()
    (out / "maps").write_text("a file in the place of the folder")
    outcome = sparseg("predict", case[0], "--model", model_folder, "--out", out, "--save", "uncertainty")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert not (out / "a.nii.gz").exists()


def test_rtstruct_holds_the_labels_of_the_nifti_file(sparseg, model_folder, tmp_path):
    series = save_series(tmp_path / "scan", make_series())
    words = ["predict", series, "--model", model_folder, "--out"]
    assert sparseg(*words, tmp_path / "a").code == 0
    outcome = sparseg(*words, tmp_path / "b", "--format", "rtstruct", "--save", "uncertainty")
    assert (outcome.code, outcome.err) == (0, "")
    labels = read_labels(tmp_path / "a/scan.nii.gz").array
    ids = {name: number for number, name in ((1, "liver"), (2, "tumor")) if np.any(labels == number)}
    found = read_dicom_label_map(tmp_path / "b/scan.dcm", read_volume(series), ids)
    np.testing.assert_array_equal(found.array, labels)
    assert ids
    assert (tmp_path / "b/maps/scan_uncertainty.nii.gz").is_file()
    for name in ("report.json", "statistics.json", "report/scan.json"):
        assert b"ZZPHI" not in (tmp_path / "b" / name).read_bytes()


def test_rtstruct_needs_a_series(sparseg, model_folder, tmp_path, case):
    words = ["--model", model_folder, "--out", tmp_path / "out", "--format", "rtstruct"]
    sparseg("predict", case[0], *words).refused("DICOM series", "--format nii.gz")
    sparseg("predict", case[0], *words, "--labelmap").refused("--format dicom-seg")
