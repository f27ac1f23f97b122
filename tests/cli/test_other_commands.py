"""`sparseg evaluate`, `sparseg info` and `sparseg sample`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from hazards.dicom_faults import make_slices, save_series
from predict.threshold_model import NAMES
from sparseg.datasets import sample
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -10], [0, 0, 3, 5], [0, 0, 0, 1]])


def block(start, label=1, edge=6):
    labels = np.zeros((16, 14, 12), np.uint8)
    labels[tuple(slice(first, first + edge) for first in start)] = label
    return labels


@pytest.fixture
def folders(tmp_path):
    """References: a liver cube and a tumor cube, and predictions equal to them."""
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    for folder in (pred, ref):
        folder.mkdir()
        write_label_map(folder / "one.nii.gz", block((1, 1, 1)) + block((8, 7, 6), label=2, edge=4), AFFINE)
        write_label_map(folder / "two.nii.gz", block((4, 4, 4)), AFFINE)
    return pred, ref


@pytest.fixture
def toy(tmp_path):
    """Write a dataset with one labelled training and two test cases."""
    root = tmp_path / "toy"
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(("Tr/a", "Ts/b", "Ts/c")):
        image, labels = make_phantom((8, 7, 6), seed=seed)
        write_image(root / f"images{name}.nii.gz", image)
        write_label_map(root / f"labels{name}.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    content = {
        "name": "toy phantoms",
        "channel_names": {"0": "CT"},
        "labels": {str(number): name for number, name in NAMES.items()},
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
        "test": [{"image": "imagesTs/b.nii.gz", "label": "labelsTs/b.nii.gz"}, "imagesTs/c.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def pairs(text):
    """Return what `print_pairs` printed as a dict."""
    return {name: value.strip() for name, _, value in (line.partition(": ") for line in text.splitlines())}


class TestEvaluate:
    def test_a_perfect_prediction(self, sparseg, folders, toy, tmp_path):
        pred, ref = folders
        out = tmp_path / "deep" / "metrics.json"
        outcome = sparseg("evaluate", "--pred", pred, "--ref", ref, "--labels", toy, "--out", out)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.endswith(f"{out}\n")
        result = json.loads(out.read_text())
        assert result["labels"] == {str(number): name for number, name in NAMES.items()}
        assert result["num_cases"] == 2
        assert (result["mean"]["dice"], result["mean"]["hd95_mm"], result["mean"]["nsd"]) == (1, 0, 1)
        # The second case has no tumor in either: not defined, and 1 in the mean "with empty".
        tumor = result["classes"][1]
        assert (tumor["name"], tumor["dice"], tumor["dice_count"]) == ("tumor", 1, 1)
        assert result["cases"][1]["classes"][1]["dice"] is None

    def test_a_shifted_prediction(self, sparseg, folders, toy, tmp_path):
        """Two of six voxels along the first axis: Dice 2 * 4 / 12, and 4 mm between the far faces."""
        pred, ref = folders
        write_label_map(pred / "two.nii.gz", block((6, 4, 4)), AFFINE)
        (pred / "one.nii.gz").unlink()
        (ref / "one.nii.gz").unlink()
        arguments = ("evaluate", "--pred", pred, "--ref", ref, "--labels", toy, "--out", tmp_path / "m.json")
        assert sparseg(*arguments).code == 0
        liver = json.loads((tmp_path / "m.json").read_text())["cases"][0]["classes"][0]
        assert liver["dice"] == pytest.approx(4 / 6)
        assert liver["hd95_mm"] == pytest.approx(4.0)
        assert liver["nsd"] < 1
        narrow = liver["nsd"]
        assert sparseg(*arguments, "--tolerance-mm", "4.1").code == 0
        liver = json.loads((tmp_path / "m.json").read_text())["cases"][0]["classes"][0]
        assert liver["nsd"] == 1 > narrow

    def test_names_from_a_model(self, sparseg, folders, model_folder, tmp_path):
        pred, ref = folders
        out = tmp_path / "m.json"
        assert (
            sparseg("evaluate", "--pred", pred, "--ref", ref, "--labels", model_folder, "--out", out).code
            == 0
        )
        assert json.loads(out.read_text())["labels"]["1"] == "liver"

    def test_names_with_markup_are_printed_as_they_are(self, sparseg, folders, toy):
        text = (toy / "dataset.json").read_text()
        (toy / "dataset.json").write_text(text.replace("liver", "[/red] :heart:"))
        pred, ref = folders
        outcome = sparseg("evaluate", "--pred", pred, "--ref", ref, "--labels", toy)
        assert outcome.code == 0
        assert "[/red] :heart:" in outcome.out

    @pytest.mark.parametrize("change", ["position", "direction", "shape", "spacing"])
    def test_another_grid(self, sparseg, folders, tmp_path, change):
        pred, ref = folders
        affine, labels = AFFINE.copy(), block((4, 4, 4))
        if change == "position":
            affine[2, 3] += 3
        elif change == "direction":
            affine[0] *= -1
        elif change == "shape":
            labels = labels[:, :, :-1]
        else:
            affine[:3, 1] *= 1.02
        write_label_map(pred / "two.nii.gz", labels, affine)
        outcome = sparseg("evaluate", "--pred", pred, "--ref", ref, "--out", tmp_path / "m.json")
        outcome.refused(
            pred / "two.nii.gz", ref / "two.nii.gz", "prediction and reference", "received", "resample"
        )
        assert not (tmp_path / "m.json").exists()

    def test_missing_and_empty(self, sparseg, folders, tmp_path):
        pred, ref = folders
        (pred / "two.nii.gz").unlink()
        out = tmp_path / "m.json"
        sparseg("evaluate", "--pred", pred, "--ref", ref, "--out", out).refused(
            pred, "1 of 2 missing: two", "predict these cases"
        )
        (tmp_path / "none").mkdir()
        sparseg("evaluate", "--pred", pred, "--ref", tmp_path / "none", "--out", out).refused(
            tmp_path / "none", "check --ref"
        )
        sparseg("evaluate", "--pred", tmp_path / "gone", "--ref", ref).refused(
            tmp_path / "gone", "folder", "check --pred"
        )
        sparseg("evaluate", "--pred", pred, "--ref", ref, "--labels", tmp_path / "none").refused(
            tmp_path / "none"
        )
        assert not out.exists()

    def test_unlisted_ids(self, sparseg, folders, toy):
        pred, ref = folders
        write_label_map(pred / "two.nii.gz", block((4, 4, 4), label=7, edge=2), AFFINE)
        sparseg("evaluate", "--pred", pred, "--ref", ref, "--labels", toy).refused(
            pred / "two.nii.gz", "[0, 1, 2]", "received 7 (8 voxels)"
        )


class TestInfo:
    def test_image(self, sparseg, tmp_path):
        array = np.full((1, 5, 6, 7), -1000.0, np.float32)
        array[0, 2, 3, 4] = 1099.0
        write_image(tmp_path / "a.nii.gz", Volume(array, AFFINE))
        outcome = sparseg("info", tmp_path / "a.nii.gz")
        assert (outcome.code, outcome.err) == (0, "")
        assert pairs(outcome.out) == {
            "image": str(tmp_path / "a.nii.gz"),
            "channels": "1",
            "shape": "5 x 6 x 7",
            "spacing (mm)": "2 x 1.5 x 3",
            "axes": "LAS (voxel axes run towards these)",
            "first voxel (mm, RAS+)": "30.00, -10.00, 5.00",
            "extent (mm)": "10.0 x 9.0 x 21.0",
            "range": "-1000 to 1099",
            "mean": "-990.00",
        }

    def test_dicom_series(self, sparseg, tmp_path):
        values = pairs(sparseg("info", save_series(tmp_path / "ct", make_slices())).out)
        assert values["shape"] == "12 x 9 x 8"
        assert values["spacing (mm)"] == "0.7 x 0.8 x 2.5"
        assert values["axes"].startswith("LPS")
        # DICOM's (-40, -60, 100) in LPS.
        assert values["first voxel (mm, RAS+)"] == "40.00, 60.00, 100.00"

    def test_dataset(self, sparseg, toy):
        outcome = sparseg("info", toy)
        assert (outcome.code, outcome.err) == (0, "")
        assert pairs(outcome.out) == {
            "dataset": "toy phantoms",
            "layout": "Medical Segmentation Decathlon",
            "channels": "CT",
            "labels": "0 background, 1 liver, 2 tumor",
            "regions": "none",
            "training cases": "1",
            "test cases": "2 (1 with labels)",
        }

    def test_model(self, sparseg, model_folder):
        outcome = sparseg("info", model_folder)
        assert (outcome.code, outcome.err) == (0, "")
        values = pairs(outcome.out)
        assert values["model"] == str(model_folder)
        assert values["labels"] == "0 background, 1 liver, 2 tumor"
        assert values["window (voxels)"] == "16 x 16 x 16"
        assert values["tokens per stage"] == "64 -> 32 -> 16 -> 8"
        assert values["width, depth, heads"] == "24, 4, 2"
        assert values["spacing (mm)"] == "as the image"
        assert values["validation Dice"] == "-"

    def test_damaged_model(self, sparseg, model_folder, tmp_path):
        shutil.copytree(model_folder, tmp_path / "m")
        (tmp_path / "m" / "weights.safetensors").write_bytes(b"")
        sparseg("info", tmp_path / "m").refused(tmp_path / "m" / "weights.safetensors", "SHA-256")

    def test_nothing(self, sparseg, tmp_path):
        (tmp_path / "empty").mkdir()
        sparseg("info", tmp_path / "empty").refused(
            tmp_path / "empty", "received none of them", "name the image"
        )
        sparseg("info", tmp_path / "gone").refused(tmp_path / "gone", "must exist", "check the path")

    def test_broken_dataset(self, sparseg, toy):
        (toy / "imagesTs" / "b.nii.gz").unlink()
        sparseg("info", toy).refused(toy / "imagesTs/b.nii.gz", "listed is missing")


def test_sample_fetch_writes_where_it_is_told(sparseg, toy, tmp_path, monkeypatch):
    """The fetching itself is tested with the datasets; this is the wiring."""
    asked = []

    def fetch(name, folder):
        asked.append((name, folder))
        shutil.copytree(toy, folder)
        (folder / "README.txt").write_text("silver labels\n")
        return folder

    monkeypatch.setattr(sample, "fetch_sample", fetch)
    outcome = sparseg("sample", "fetch", "ct", "--to", tmp_path / "ct")
    assert (outcome.code, outcome.err) == (0, "")
    assert asked == [("ct", tmp_path / "ct")]
    values = pairs(outcome.out)
    assert (values["training"], values["test"]) == ("a", "b, c")
    assert (values["labels"], values["provenance"]) == ("2 structures", "silver labels")


def test_unknown_commands_and_samples(sparseg, tmp_path):
    sparseg("segment").refused("segment", "predict", "sparseg --help")
    sparseg("sample", "fetch", "mr", "--to", tmp_path / "x").refused("mr", "ct")
    sparseg("predict").refused("INPUTS", "sparseg predict --help")
    sparseg("info").refused("PATH")
    assert not (tmp_path / "x").exists()


def test_the_cache_is_shown_and_cleared(sparseg, toy, tmp_path):
    folder = tmp_path / "cache"
    run = ("train", toy, "--out", tmp_path / "run", "--preset", "test_tiny", "--max-steps", "1")
    assert sparseg(*run, "--set", "batch_size=1", "--cache", folder).code == 0
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shown = pairs(sparseg("cache", "show", "--cache", folder).out)
    assert shown == {"cache": str(folder), "holds": f"1 cases, {stored / 1e6:.1f} MB"}
    assert pairs(sparseg("cache", "clear", "--cache", folder).out)["freed"] == shown["holds"]
    assert not any(path.is_file() for path in folder.rglob("*"))
    assert pairs(sparseg("cache", "show", "--cache", folder).out)["holds"] == "0 cases, 0.0 MB"
