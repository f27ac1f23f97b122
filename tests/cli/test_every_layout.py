"""The same cases in every layout: found without being told, one fingerprint, trained for two steps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from sparseg.checkpoints.folder import read_card
from sparseg.datasets.facts import measure
from sparseg.datasets.fingerprint import fingerprint_key
from sparseg.datasets.layouts import bids, case_folders, datalist, decathlon, dicom, folders, nnunet, table
from sparseg.datasets.writers.write import write_dataset
from sparseg.datasets.writers.written import WrittenCase
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "liver", 2: "tumor"}
LAYOUTS = {
    "decathlon": decathlon, "nnunet": nnunet, "datalist": datalist, "bids": bids, "folders": folders,
    "table": table, "dicom": dicom, "case_folders": case_folders,
}  # fmt: skip


def cases():
    """Two CT-like phantoms of whole numbers, one stored with mirrored axes."""
    for number, signs in enumerate(((1, 1, 1, 1), (-1, 1, -1, 1))):
        image, labels = make_phantom((20, 18, 16), seed=number)
        affine = np.diag(signs) @ image.affine
        array = np.rint(image.array * 3 - 500).astype(np.int16)
        yield WrittenCase(f"case{number}", Volume(array, affine), Volume(labels.array, affine))


def write(layout, root):
    """The cases in a layout that is written for users, or in folders as scanners' archives have them."""
    options = {"name": "three", "channels": ("CT",), "labels": LABELS}
    if layout != "case_folders":
        return write_dataset(layout, cases(), root, **options)
    written = write_dataset("folders", cases(), root.with_name("plain"), **options)
    for case in cases():
        (root / case.name).mkdir(parents=True)
        for kind, name in (("images", "ct"), ("labels", "seg")):
            (file,) = written.glob(f"{kind}*/{case.name}*")
            shutil.copy(file, root / case.name / f"{case.name}_{name}.nii.gz")
    return root


def fingerprint(run):
    return next(line for line in (run / "plan.yaml").read_text().splitlines() if "fingerprint" in line)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_trains_two_steps_without_being_told_the_layout(sparseg, tmp_path, layout):
    root = write(layout, tmp_path / "set")
    outcome = sparseg(
        *("train", root, "--out", tmp_path / "run", "--preset", "test_tiny", "--max-steps", "2"),
        *("--set", "batch_size=1"),
    )
    assert outcome.code == 0, outcome.err
    named = [line for line in outcome.err.splitlines() if line.startswith(f"{LAYOUTS[layout].NAME} dataset")]
    assert len(named) == 1, outcome.err
    assert "2 training and 0 test cases" in named[0]
    card = read_card(tmp_path / "run")
    assert list(card.labels) == [0, 1, 2]
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert all(0 < row["loss"] < 10 for row in rows if row["kind"] == "train")
    expected = fingerprint_key([measure(case.image, case.labels) for case in cases()])
    assert expected in fingerprint(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "datalist", "bids", "folders", "table"])
def test_four_modalities_and_regions(sparseg, tmp_path, layout):
    """BraTS: four channels, ids 1 2 4, overlapping whole tumour, core and enhancing part."""
    names = ("FLAIR", "T1w", "T2w", "ceT1w")
    labels = {0: "background", 1: "necrosis", 2: "oedema", 4: "enhancing"}
    regions = {"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}
    made = []
    for case in cases():
        image = np.concatenate([case.image.array + 600 + 50 * number for number in range(4)])
        ids = np.array([0, 2, 4], np.int32)[case.labels.array]
        ids[:, 9:11, 8:10, 7:9] = 1
        made.append(WrittenCase(case.name, Volume(image, case.image.affine), Volume(ids, case.image.affine)))
    root = write_dataset(
        layout, made, tmp_path / "set", name="brats", channels=names, labels=labels, regions=regions
    )
    outcome = sparseg(
        *("train", root, "--out", tmp_path / "run", "--preset", "test_tiny", "--max-steps", "2"),
        *("--set", "batch_size=1"),
    )
    assert outcome.code == 0, outcome.err
    card = read_card(tmp_path / "run")
    assert card.channels == names
    assert card.regions == regions
    assert (card.model.in_channels, card.model.num_classes) == (4, 3)
    assert card.preprocess.intensity.kind == "mr"
