"""A run goes on with the dataset and the folds it was started with, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparseg.errors import ConfigError, DatasetError
from sparseg.training.state import read_progress
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume
from training.toy import run_toy, write_toy_dataset

pytestmark = pytest.mark.usefixtures("no_figure")


@pytest.fixture
def started(dataset: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A dataset of its own and a run that stopped on it before the first validation."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(dataset, data)
    run_toy(data, run, until=1)
    return data, run


def describe(data: Path, **changes: object) -> None:
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(content | changes))


def swap_labels(data: Path) -> None:
    path = data / "labelsTr" / "case0.nii.gz"
    file = nib.load(path)
    write_label_map(path, np.array([0, 2, 1], np.uint8)[np.asarray(file.dataobj)], file.affine)


def change_image(data: Path) -> None:
    path = data / "imagesTr" / "case1.nii.gz"
    file = nib.load(path)
    array = np.asarray(file.dataobj, np.float32).copy()
    array[0, 0, 0] += 1
    write_image(path, Volume(array[None], file.affine))


def list_cases(data: Path, names: list[str]) -> None:
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]
    describe(data, training=listed)


def add_case(data: Path) -> None:
    image, labels = make_phantom((20, 18, 16), num_classes=3, seed=9)
    write_image(data / "imagesTr" / "more.nii.gz", image)
    ids = labels.array[0].astype(np.uint8)
    write_label_map(data / "labelsTr" / "more.nii.gz", ids, labels.affine)
    list_cases(data, ["case0", "case1", "case2", "more"])


def drop_case(data: Path) -> None:
    list_cases(data, ["case0", "case1"])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (swap_labels, "1 changed: case0"),
        (change_image, "1 changed: case1"),
        (add_case, "1 new: more"),
        (drop_case, "1 gone: case2"),
    ],
)
def test_other_cases_are_named_and_refused(
    started: tuple[Path, Path], change: Callable[[Path], None], found: str
) -> None:
    data, run = started
    change(data)
    manifest = (run / "manifest.json").read_bytes()
    with pytest.raises(DatasetError, match=f"received {found}; restore these cases, or train anew") as error:
        run_toy(data, run, resume=True)
    assert error.value.code == "resume-cases"
    assert (run / "manifest.json").read_bytes() == manifest
    assert read_progress(run).step == 1  # type: ignore[union-attr]


def test_names_swapped_before_the_first_validation_are_refused(started: tuple[Path, Path]) -> None:
    data, run = started
    assert not (run / "last").exists()
    describe(data, labels={"0": "background", "1": "tumor", "2": "liver"})
    with pytest.raises(ConfigError, match="go on with the labels") as error:
        run_toy(data, run, resume=True)
    assert error.value.code == "resume-differs"


def test_regions_in_another_order_are_refused(tmp_path: Path) -> None:
    """Their order is that of the network's outputs."""
    liver, tumor = {"liver": [1, 2]}, {"tumor": [2]}
    data = write_toy_dataset(tmp_path / "data", 2, labels={"background": 0, **liver, **tumor})
    run_toy(data, tmp_path / "run", until=1)
    describe(data, labels={"background": 0, **tumor, **liver})
    with pytest.raises(ConfigError, match="go on with the regions"):
        run_toy(data, tmp_path / "run", resume=True)


def test_a_dataset_that_moved_is_the_same(started: tuple[Path, Path]) -> None:
    data, run = started
    data.rename(data.with_name("elsewhere"))
    moved, _ = run_toy(data.with_name("elsewhere"), run, resume=True)
    assert moved.progress.step == 6


def test_a_manifest_of_an_earlier_version_vouches_for_the_cases(started: tuple[Path, Path]) -> None:
    data, run = started
    content = json.loads((run / "manifest.json").read_text())
    for part in ("channels", "labels", "regions"):
        del content["dataset"][part]
    (run / "manifest.json").write_text(json.dumps(content))
    swap_labels(data)
    with pytest.raises(DatasetError, match="1 changed: case0"):
        run_toy(data, run, resume=True)
    (run / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="must be readable JSON"):
        run_toy(data, run, resume=True)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "with the folds it was started with; received no splits.json"),
        ("{", "must be readable JSON; received"),
        ('{"folds": [{"val": []}, {"val": ["case0"]}]}', "fold 0"),
        ('{"folds": [{"val": ["case0"]}, {"val": ["other"]}]}', "1 unknown: other"),
    ],
)
def test_a_run_without_its_folds_gets_no_new_ones(
    started: tuple[Path, Path], content: str | None, found: str
) -> None:
    data, run = started
    splits = run / "splits.json"
    splits.unlink()
    if content is not None:
        splits.write_text(content)
    with pytest.raises(DatasetError, match=f"{found}.*; restore the file that the run wrote, or train anew"):
        run_toy(data, run, resume=True)
    assert splits.is_file() == (content is not None)
    assert read_progress(run).step == 1  # type: ignore[union-attr]
