"""Datasets as input: several files per case, lists, and what is missing from them."""

from __future__ import annotations

import numpy as np
import pytest

from predict.threshold_model import threshold_predictor
from sparseg.datasets.writers.write import write_dataset
from sparseg.datasets.writers.written import WrittenCase
from sparseg.errors import DatasetError, GeometryError, InputError
from sparseg.predict.inputs import collect_cases
from sparseg.preprocessing.pipeline import prepare
from sparseg.volumes.io import read_labels
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "liver", 2: "tumor"}


def cases(num_test=1):
    """Two channels: the phantom, and the phantom again but for an offset."""
    for number in range(3):
        image, labels = make_phantom((22, 19, 17), seed=number)
        both = Volume(np.concatenate([image.array, image.array + 1000]), image.affine)
        yield WrittenCase(f"case{number}", both, labels, split="test" if number < num_test else "training")


def dataset(root, layout="nnunet", num_test=1):
    return write_dataset(layout, cases(num_test), root, name="two", channels=("a", "b"), labels=LABELS)


def test_the_test_cases_with_all_their_channels(tmp_path):
    root = dataset(tmp_path / "set")
    (case,) = collect_cases([root], tmp_path / "out")
    assert (case.name, case.output) == ("case0", tmp_path / "out" / "case0.nii.gz")
    assert [path.name for path in (case.image, *case.channels)] == [
        "case0_0000.nii.gz",
        "case0_0001.nii.gz",
    ]


@pytest.mark.parametrize("layout", ["nnunet", "datalist", "bids", "folders", "table"])
def test_all_cases_where_there_are_no_test_cases(tmp_path, layout):
    found = collect_cases([dataset(tmp_path / "set", layout, num_test=0)], tmp_path / "out")
    # Some layouts name a case after its subject, some after its first file.
    assert [case.name.removeprefix("sub-")[:5] for case in found] == ["case0", "case1", "case2"]
    assert all(len(case.channels) == 1 for case in found)


def test_a_list_of_cases(tmp_path):
    root = dataset(tmp_path / "set", "table")
    (table,) = root.glob("*.csv")
    assert [case.name for case in collect_cases([table], tmp_path / "out")] == ["case0"]


def test_channels_are_joined_in_order(monkeypatch, tmp_path):
    (case,) = collect_cases([dataset(tmp_path / "set")], tmp_path / "out")
    predictor = threshold_predictor(monkeypatch)
    monkeypatch.setattr(predictor, "_require_channels", lambda image: seen.append(image.array.copy()))
    monkeypatch.setattr("sparseg.predict.predictor.image_warnings", lambda *_: ())
    seen = []
    truth = next(cases()).labels
    # The classifier of these tests looks at the first channel only.
    monkeypatch.setattr(
        "sparseg.predict.predictor.prepare",
        lambda image, config: prepare(Volume(image.array[:1], image.affine), config),
    )
    predictor.predict_file(case.image, case.output, channels=case.channels)
    np.testing.assert_allclose(seen[0][1], seen[0][0] + 1000, atol=1e-3)
    np.testing.assert_array_equal(read_labels(case.output).array, truth.array)


def test_channels_on_different_grids_are_refused(monkeypatch, tmp_path):
    image, _ = make_phantom((22, 19, 17))
    moved = image.affine.copy()
    moved[0, 3] += 3
    write_image(tmp_path / "a.nii", image)
    write_image(tmp_path / "b.nii", Volume(image.array, moved))
    with pytest.raises(GeometryError, match="channels of a case"):
        threshold_predictor(monkeypatch).predict_file(
            tmp_path / "a.nii", tmp_path / "out.nii.gz", channels=(tmp_path / "b.nii",)
        )
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_missing_channel_is_refused_and_a_case_without_label_named(tmp_path, caplog):
    root = dataset(tmp_path / "set", num_test=0)
    (root / "labelsTr" / "case1.nii.gz").unlink()
    assert [case.name for case in collect_cases([root], tmp_path / "out")] == ["case0", "case2"]
    assert "left out case1: an image without a label" in caplog.text
    (root / "imagesTr" / "case2_0001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"case2.*received none of b"):
        collect_cases([root], tmp_path / "out")


def test_a_folder_of_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="or be a dataset"):
        collect_cases([tmp_path / "empty"], tmp_path / "out")
