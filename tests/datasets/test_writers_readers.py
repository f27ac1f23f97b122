"""The same cases written in every layout are the same cases when read: voxels, ids, millimetres, names."""

import numpy as np
import pytest

from sparseg.datasets.facts import measure
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.writers.write import LAYOUTS, write_dataset
from sparseg.datasets.writers.written import WrittenCase
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

# Not in alphabetical order and with a gap, which DICOM files alone could not say.
LABELS = {0: "background", 1: "tumor", 2: "liver", 5: "spleen"}
OBLIQUE = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
VARIANTS = [(layout, ".nii.gz") for layout in LAYOUTS] + [
    (layout, ending)
    for layout in ("decathlon", "nnunet", "datalist", "folders", "table")
    for ending in (".nii", ".nrrd", ".mha")
]


def ct_cases():
    """Three cases of whole numbers: axial, with mirrored axes, and oblique."""
    changes = (np.eye(4), np.diag([-1.0, 1, -1, 1]), OBLIQUE)
    for number, change in enumerate(changes):
        image, labels = make_phantom((12, 10, 9), num_classes=4, seed=number)
        array = np.rint(image.array * 3 - 1000).astype(np.int16)
        ids = np.array([0, 1, 2, 5], np.int32)[labels.array]
        affine = change @ image.affine
        yield WrittenCase(f"case{number}", Volume(array, affine), Volume(ids, affine))


@pytest.mark.parametrize(("layout", "ending"), VARIANTS)
def test_content_survives_every_layout(layout, ending, tmp_path):
    root = write_dataset(
        layout,
        ct_cases(),
        tmp_path / "set",
        name="three",
        channels=("CT",),
        labels=LABELS,
        file_ending=ending,
    )
    dataset = read_dataset(root)
    assert dataset.labels == LABELS
    assert (dataset.name, dataset.channels) == ("three", ("CT",))
    assert len(dataset.training) == 3
    assert dataset.test == ()
    assert len({case.patient for case in dataset.training}) == 3
    got = [measure(*load_case(case, dataset)) for case in dataset.training]
    expected = [measure(case.image, case.labels) for case in ct_cases()]
    assert [facts.content_key for facts in got] == [facts.content_key for facts in expected]
    assert [facts.label_counts for facts in got] == [facts.label_counts for facts in expected]
    for facts, original in zip(got, expected, strict=True):
        assert np.abs(np.subtract(facts.affine, original.affine)).max() <= 1e-3


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "dicom"])
def test_channels_and_regions_survive(layout, tmp_path):
    case = next(ct_cases())
    image = Volume(np.concatenate([case.image.array, case.image.array + 7]), case.image.affine)
    regions = {"whole": (1, 2, 5), "inner": (2,)}
    root = write_dataset(
        layout,
        [WrittenCase("a", image, case.labels)],
        tmp_path / "set",
        name="two",
        channels=("T1w", "T2w"),
        labels=LABELS,
        regions=regions,
    )
    dataset = read_dataset(root)
    assert (dataset.channels, dataset.regions) == (("T1w", "T2w"), regions)
    assert dataset.labels == LABELS
    facts = measure(*load_case(dataset.training[0], dataset))
    assert facts.content_key == measure(image, case.labels).content_key


@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "datalist", "folders", "table"])
def test_split_survives(layout, tmp_path):
    first, second, _ = ct_cases()
    test = WrittenCase(second.name, second.image, second.labels, split="test")
    root = write_dataset(layout, [first, test], tmp_path / "set", name="x", channels=("CT",), labels=LABELS)
    dataset = read_dataset(root)
    assert [case.name for case in dataset.training] == ["case0"]
    assert [case.name for case in dataset.test] == ["case1"]
    _, labels = load_case(dataset.test[0], dataset)
    assert measure(second.image, labels).label_counts == measure(second.image, second.labels).label_counts


@pytest.mark.parametrize("layout", ["datalist", "table"])
def test_folds_survive(layout, tmp_path):
    cases = [
        WrittenCase(case.name, case.image, case.labels, fold=number % 2)
        for number, case in enumerate(ct_cases())
    ]
    root = write_dataset(layout, cases, tmp_path / "set", name="x", channels=("CT",), labels=LABELS)
    assert [case.fold for case in read_dataset(root).training] == [0, 1, 0]


@pytest.mark.parametrize("layout", ["bids", "table", "dicom"])
def test_subjects_survive(layout, tmp_path):
    cases = [
        WrittenCase(case.name, case.image, case.labels, subject="p1" if number < 2 else "p2")
        for number, case in enumerate(ct_cases())
    ]
    root = write_dataset(layout, cases, tmp_path / "set", name="x", channels=("CT",), labels=LABELS)
    first, second, third = (case.patient for case in read_dataset(root).training)
    assert first == second != third
