"""`sparseg synth` from phantom and files."""

import json

import nibabel as nib
import numpy as np
import pytest

from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom


@pytest.fixture
def source(tmp_path):
    """A labelled CT-like pair of files in a folder whose name is the patient's."""
    folder = tmp_path / "ZZPHI01"
    folder.mkdir()
    image, labels = make_phantom((16, 14, 12), seed=4)
    write_image(folder / "image.nii.gz", image)
    write_label_map(folder / "labels.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    return folder


def test_phantom_needs_no_input(sparseg, tmp_path):
    options = ("--phantom", "--num-cases", 2, "--num-test", 1, "--shape", 16, 14, 12, "--seed", 3)
    outcome = sparseg("synth", *options, "--to", tmp_path / "set", "--workers", 1)
    assert (outcome.code, outcome.err) == (0, "")
    assert "2 training and 1 test cases, channels MR, 3 labels" in outcome.out
    dataset = read_dataset(tmp_path / "set")
    assert dataset.name == "synthetic MR"
    assert [case.name for case in dataset.cases] == ["synthetic_0001", "synthetic_0002", "synthetic_0003"]
    image, labels = load_case(dataset.training[1], dataset)
    assert (image.array.shape, labels.array.shape) == ((1, 16, 14, 12),) * 2
    assert set(np.unique(labels.array)) <= {0, 1, 2, 3}
    record = json.loads((tmp_path / "set/synth.json").read_text())
    assert record["source"] == {"phantom": {"shape": [16, 14, 12], "seed": 3}}
    assert (record["num_cases"], record["num_test"], record["config"]["seed"]) == (2, 1, 3)
    again = sparseg("synth", *options, "--to", tmp_path / "again", "--workers", 1)
    assert again.code == 0
    for file in sorted((tmp_path / "set").rglob("*.nii.gz")):
        other = tmp_path / "again" / file.relative_to(tmp_path / "set")
        assert file.read_bytes() == other.read_bytes()


def test_files_with_names_and_settings(sparseg, source, tmp_path):
    (tmp_path / "names.yaml").write_text("{0: background, 1: liver, 2: tumor}")
    (tmp_path / "settings.yaml").write_text("deform_mm: 1\nmodality: ct\n")
    outcome = sparseg(
        *("synth", source / "labels.nii.gz", "--image", source / "image.nii.gz", "--to", tmp_path / "set"),
        *("--names", tmp_path / "names.yaml", "--config", tmp_path / "settings.yaml", "--set", "noise=0"),
        *("--num-cases", 1, "--intensity", "image"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    dataset = read_dataset(tmp_path / "set")
    assert dataset.labels == {0: "background", 1: "liver", 2: "tumor"}
    assert dataset.channels == ("CT",)
    text = (tmp_path / "set/synth.json").read_text()
    config = json.loads(text)["config"]
    assert (config["deform_mm"], config["noise"], config["intensity"]) == (1, 0, "image")
    # The user's folder name does not travel on, only hashes of the files.
    assert len(json.loads(text)["source"]["image_sha256"]) == 64
    for file in (tmp_path / "set").rglob("*"):
        assert file.is_dir() or b"ZZPHI" not in file.read_bytes()


def test_names_of_another_dataset(sparseg, source, tmp_path):
    first = ("synth", source / "labels.nii.gz", "--num-cases", 1)
    assert sparseg(*first, "--to", tmp_path / "a").code == 0
    content = json.loads((tmp_path / "a/dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "liver", "2": "tumor", "3": "spleen"}
    (tmp_path / "a/dataset.json").write_text(json.dumps(content))
    assert sparseg(*first, "--to", tmp_path / "b", "--names", tmp_path / "a").code == 0
    assert read_dataset(tmp_path / "b").labels[3] == "spleen"


def test_stored_geometry(sparseg, source, tmp_path):
    outcome = sparseg(
        *("synth", source / "labels.nii.gz", "--to", tmp_path / "set", "--num-cases", 1, "--channels", 2),
        *("--shape", 10, 12, 8, "--spacing", 2, 1.5, 3),
    )
    assert (outcome.code, outcome.err) == (0, "")
    image = nib.load(tmp_path / "set/imagesTr/synthetic_0001.nii.gz")
    assert image.shape == (10, 12, 8, 2)
    assert image.get_data_dtype() == np.int16
    old = nib.load(source / "labels.nii.gz")
    middle = [np.append((np.array(i.shape[:3]) - 1) / 2, 1) for i in (image, old)]
    # Same centre in millimetres.
    assert np.allclose(image.affine @ middle[0], old.affine @ middle[1], atol=1e-4)
    assert np.allclose(nib.affines.voxel_sizes(image.affine), (2, 1.5, 3))


class TestRefusals:
    def test_source(self, sparseg, source, tmp_path):
        to = ("--to", tmp_path / "set")
        sparseg("synth", *to).refused("neither", "--phantom")
        sparseg("synth", source / "labels.nii.gz", "--phantom", *to).refused("both")
        sparseg("synth", source / "gone.nii.gz", *to).refused("gone.nii.gz")
        sparseg("synth", source / "labels.nii.gz", "--modality", "ct", *to).refused("--image")
        assert not (tmp_path / "set").exists()

    def test_settings(self, sparseg, tmp_path):
        phantom = ("synth", "--phantom", "--shape", 12, 12, 12, "--to", tmp_path / "set")
        sparseg(*phantom, "--num-cases", 0).refused("--num-cases")
        sparseg(*phantom, "--set", "deform=3").refused("deform", "unknown")
        sparseg(*phantom, "--modality", "ct", "--channels", 2).refused("channels")
        sparseg(*phantom, "--layout", "dicom", "--num-test", 1, "--num-cases", 1).refused("dicom")
        sparseg(*phantom, "--set", "deform_mm=60", "--set", "deform_grid_mm=5").refused("fold", "deform_mm")
        sparseg(*phantom, "--layout", "excel").refused("excel")
        assert list(tmp_path.iterdir()) == []

    def test_filled_folder(self, sparseg, tmp_path):
        (tmp_path / "mine").write_text("x")
        sparseg("synth", "--phantom", "--to", tmp_path).refused(tmp_path, "new or empty")
