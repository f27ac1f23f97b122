"""`sparseg predict` with clean-up and other formats, by the command's own options."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparseg.volumes.io import read_labels
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

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
