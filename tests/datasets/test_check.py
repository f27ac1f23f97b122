"""Where a fault lies, which repair is safe, and what the report says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparseg.datasets import inspect
from sparseg.datasets.check import check_dataset
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.findings import Finding
from sparseg.datasets.inspect import inspect_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.safe_repairs import covered_share, grid_repair
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

AFFINE = np.array([[-1.5, 0, 0, 30], [0, 1.0, 0, -15], [0, 0, 2.0, -10], [0, 0, 0, 1]])


def make_case(folder: Path, *, channels: int = 1) -> tuple[Case, Dataset]:
    """A sound case whose first voxel lies at (30, -15, -10) mm."""
    image, labels = make_phantom((12, 10, 9), seed=1)
    array = np.concatenate([image.array] * channels)
    write_image(folder / "i.nii.gz", Volume(array, AFFINE))
    write_label_map(folder / "l.nii.gz", labels.array[0].astype(np.uint8), AFFINE)
    case = Case("one", (folder / "i.nii.gz",), folder / "l.nii.gz")
    names = tuple(f"channel {n}" for n in range(channels))
    return case, Dataset("toy", names, {0: "background", 1: "liver", 2: "tumor"}, (case,), (), folder)


def set_voxels(path: Path, value: float, *voxels: tuple[int, ...]) -> None:
    file = nib.load(path)
    array = np.asarray(file.dataobj).astype(np.float32)
    for voxel in voxels:
        array[voxel] = value
    nib.save(nib.Nifti1Image(array, file.affine), path)


def only(case: Case, dataset: Dataset) -> Finding:
    report = inspect_case(case, dataset)
    assert report.facts is None
    (finding,) = report.findings
    return finding


def test_position_of_a_voxel_that_is_not_finite(tmp_path):
    case, dataset = make_case(tmp_path)
    set_voxels(case.image, np.nan, (0, 1, 2), (3, 0, 0))
    finding = only(case, dataset)
    # The first in storage order of the array: (0, 1, 2) at 30 - 0, -15 + 1, -10 + 4.
    assert finding.position_mm == (30.0, -14.0, -6.0)
    assert finding.repair == "fill-nonfinite"
    assert Path(finding.file) == case.image


def test_a_labelled_voxel_is_not_filled(tmp_path):
    case, dataset = make_case(tmp_path)
    voxel = tuple(int(i) for i in np.argwhere(nib.load(case.label).get_fdata() > 0)[0])
    set_voxels(case.image, np.inf, voxel)
    assert only(case, dataset).repair == ""
    assert only(replace(case, label=None), dataset).repair == "fill-nonfinite"


def test_a_channel_without_finite_voxels_is_not_filled(tmp_path):
    case, dataset = make_case(tmp_path, channels=2)
    set_voxels(case.image, np.nan, (..., 1))
    assert only(replace(case, label=None), dataset).repair == ""


@pytest.mark.parametrize(
    ("value", "code", "repair"),
    [(300, "label-unknown", ""), (-1, "label-ids", ""), (0.9999, "label-ids", "round-label")],
)
def test_position_of_a_bad_id(tmp_path, value, code, repair):
    case, dataset = make_case(tmp_path)
    set_voxels(case.label, value, (4, 5, 6), (7, 8, 8))
    finding = only(case, dataset)
    assert (finding.code, finding.repair) == (code, repair)
    assert finding.position_mm == (24.0, -10.0, 2.0)
    assert Path(finding.file) == case.label


def test_position_of_a_shifted_label_is_its_own_centre(tmp_path):
    case, dataset = make_case(tmp_path)
    array = np.zeros((12, 10, 9), np.uint8)
    array[2:5, 3:6, 4:7] = 1
    moved = AFFINE.copy()
    moved[2, 3] += 10
    write_label_map(case.label, array, moved)
    finding = only(case, dataset)
    assert (finding.code, finding.repair) == ("grid-position", "")
    assert finding.position_mm == (25.5, -11.0, 10.0)


def test_all_faults_of_a_case_are_reported(tmp_path):
    case, dataset = make_case(tmp_path)
    set_voxels(case.image, np.nan, (0, 0, 0))
    moved = AFFINE.copy()
    moved[2, 3] += 10
    write_label_map(case.label, np.full((12, 10, 9), 9, np.uint8), moved)
    report = inspect_case(case, dataset)
    assert [finding.code for finding in report.findings] == [
        "nifti-nonfinite",
        "grid-position",
        "label-unknown",
    ]
    # Nothing tells whether the voxel is labelled.
    assert {finding.repair for finding in report.findings} == {""}


def test_channels_in_files_of_their_own(tmp_path):
    case, dataset = make_case(tmp_path)
    other = AFFINE.copy()
    other[0, 3] += 3
    write_image(tmp_path / "j.nii.gz", Volume(np.ones((1, 12, 10, 9), np.float32), other))
    both = replace(case, images=(case.image, tmp_path / "j.nii.gz"))
    two = replace(dataset, channels=("T1", "T2"))
    finding = only(both, two)
    assert (finding.code, Path(finding.file).name) == ("grid-position", "j.nii.gz")
    assert finding.position_mm == (33 - 1.5 * 5.5, -15 + 4.5, -10 + 8)
    (tmp_path / "j.nii.gz").unlink()
    finding = only(both, two)
    assert (finding.code, Path(finding.file).name) == ("file-missing", "j.nii.gz")


def test_masks_that_overlap(tmp_path):
    case, dataset = make_case(tmp_path)
    masks = tuple((name, tmp_path / f"{name}.nii.gz") for name in ("liver", "tumor"))
    for _, path in masks:
        write_label_map(path, np.ones((12, 10, 9), np.uint8), AFFINE)
    finding = only(replace(case, label=None, masks=masks), dataset)
    assert finding.code == "label-overlap"
    masks[1][1].write_bytes(b"")
    finding = only(replace(case, label=None, masks=masks), dataset)
    assert (finding.code, Path(finding.file).name) == ("nifti-empty", "tumor.nii.gz")


def volume(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    return Volume(np.zeros((1, *shape), np.int32), affine)


def test_covered_share_of_boxes():
    image = volume((20, 20, 20), np.eye(4))
    half = np.eye(4)
    half[0, 3] = 10
    assert covered_share(image, volume((20, 20, 20), half)) == 0.5
    assert covered_share(volume((5, 5, 5), half), image) == 1.0
    assert covered_share(image, image) == 1.0


def test_grids_that_can_be_resampled():
    image = volume((20, 20, 20), np.eye(4))
    double = np.diag([0.5, 0.5, 0.5, 1.0])
    double[:3, 3] = -0.25
    assert grid_repair(image, volume((40, 40, 40), double)) == "resample-label"
    # A crop of the image: its box is covered by the image's.
    inner = np.eye(4)
    inner[:3, 3] = 5
    assert grid_repair(image, volume((10, 10, 10), inner)) == "resample-label"
    away = np.eye(4)
    away[0, 3] = 15
    assert grid_repair(image, volume((10, 20, 20), away)) == ""
    # Equal shapes and other spacings: a wrong header, not another grid.
    assert grid_repair(image, volume((20, 20, 20), np.diag([1.01, 1.01, 1.01, 1.0]))) == ""
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = 19
    assert grid_repair(image, volume((20, 20, 20), flipped)) == "reorient-label"


class TestResult:
    def test_double_names_and_problems_are_findings(self, toy, tmp_path):
        root, write_json = toy
        (root / "more").mkdir()
        shutil.copy(root / "imagesTs/c.nii.gz", root / "more/A.nii.gz")
        write_json(test=["imagesTs/c.nii.gz", "more/A.nii.gz"])
        problem = Finding("label-missing", "error", "no label", "add one", "z", str(root / "z.nii.gz"))
        dataset = replace(read_dataset(root, strict=False), problems=(problem,))
        result = check_dataset(dataset, workers=1, memory=tmp_path / "memory")
        assert [(f.case, f.code, f.file) for f in result.findings if f.severity == "error"] == [
            ("z", "label-missing", "z.nii.gz"),
            ("A", "case-name", "more/A.nii.gz"),
            ("A", "case-duplicate", "more/A.nii.gz"),
        ]

    def test_json(self, toy, tmp_path):
        root, _ = toy
        result = check_dataset(read_dataset(root), workers=1, memory=tmp_path / "memory")
        content = result.to_json()
        assert content["layout"] == "Medical Segmentation Decathlon"
        assert content["counts"]["usable"] == 3
        case = content["cases"][0]
        assert (case["case"], case["shape"], case["axes"]) == ("a", [10, 9, 8], "RAS")
        assert sum(case["label_voxels"].values()) == 720
        assert content["cases"][2]["label_voxels"] is None
        assert [Finding.from_json(value) for value in content["findings"]] == list(result.findings)

    def test_an_empty_dataset(self, tmp_path):
        dataset = Dataset("none", ("CT",), {}, (), (), tmp_path)
        result = check_dataset(dataset, memory=tmp_path)
        assert [(f.code, f.severity) for f in result.findings] == [("dataset-empty", "error")]

    def test_a_folder_that_cannot_be_listed_is_a_finding(self, toy, tmp_path, monkeypatch):
        root, _ = toy
        real = inspect.load_case

        def load(case, dataset):
            if case.name == "b":
                raise PermissionError(13, "Permission denied", str(root / "imagesTr/b.nii.gz"))
            return real(case, dataset)

        monkeypatch.setattr(inspect, "load_case", load)
        result = check_dataset(read_dataset(root), workers=1, memory=tmp_path / "memory")
        errors = [(f.case, f.code, f.file) for f in result.findings if f.severity == "error"]
        assert errors == [("b", "file-unreadable", "imagesTr/b.nii.gz")]

    def test_memory_that_cannot_be_written_is_done_without(self, toy, tmp_path):
        root, _ = toy
        (tmp_path / "memory").write_text("a file where the folder should be")
        result = check_dataset(read_dataset(root), workers=1, memory=tmp_path / "memory")
        assert result.counts["usable"] == 3

    def test_what_is_remembered_holds_no_names(self, toy, tmp_path):
        root, _ = toy
        check_dataset(read_dataset(root), workers=1, memory=tmp_path / "memory")
        files = list((tmp_path / "memory").iterdir())
        assert len(files) == 3
        assert not any(b"imagesTr" in file.read_bytes() for file in files)
