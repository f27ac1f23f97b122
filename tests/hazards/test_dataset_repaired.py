"""All faults in one dataset: found by case, none false, and what `--fix` keeps is right in millimetres."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from hazards.test_dataset_faults import FAULTS, SHAPE, SPACING, Paths, check, write_json
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.repair import repair_dataset
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

SOUND = ("a", "b", "c", "d", "e")
# One case each; copies of other cases and DICOM series are made by hand below or tested one by one.
PLANTED = {
    re.sub(r"\W+", "_", fault): spoil
    for fault, spoil in FAULTS.items()
    if not fault.startswith(("L5", "D1", "D4"))
}


def phantom(name: str) -> tuple[Volume, Volume]:
    """A case of its own for every name."""
    return make_phantom(SHAPE, spacing=SPACING, seed=[*SOUND, *PLANTED, "copy"].index(name))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faulty") / "toy"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in (*SOUND, *PLANTED):
        image, labels = phantom(name)
        paths = Paths(root, root / f"imagesTr/{name}.nii.gz", root / f"labelsTr/{name}.nii.gz")
        write_image(paths.image, image)
        write_label_map(paths.label, labels.array[0].astype(np.uint8), labels.affine)
        if name in PLANTED:
            PLANTED[name][0](paths)
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(root / folder / "a.nii.gz", root / folder / "copy.nii.gz")
    write_json(root, (*SOUND, *PLANTED, "copy"))
    return root


def test_every_fault_is_found_and_nothing_else(faulty: Path) -> None:
    assert len(PLANTED) >= 20
    result = check(faulty)
    found = {(f.case, f.code, f.severity) for f in result.findings if f.case}
    expected = {(name, code, severity) for name, (_, code, severity, _) in PLANTED.items()}
    assert found == expected | {("copy", "case-duplicate", "error")}
    assert len(result.findings) == len(found)


def test_what_is_kept_passes_the_check_and_lies_where_the_truth_lies(faulty: Path, tmp_path: Path) -> None:
    result = check(faulty, tmp_path / "memory")
    done = repair_dataset(result.dataset, result.reports, result.findings, tmp_path / "fixed", workers=1)
    hopeless = {n for n, (_, _, severity, repair) in PLANTED.items() if severity == "error" and not repair}
    assert {entry.case for entry in done.excluded} == hopeless
    assert {entry.case for entry in done.repaired} == {
        "copy", *(name for name, (_, _, _, repair) in PLANTED.items() if repair)
    }  # fmt: skip

    again = check(tmp_path / "fixed", tmp_path / "memory")
    allowed = {"N10_constant": "image-constant", "L2_empty": "label-empty"}
    assert {(f.case, f.code) for f in again.findings} == set(allowed.items())
    dataset = read_dataset(tmp_path / "fixed")
    kept = {*SOUND, *PLANTED} - hopeless
    assert {case.name for case in dataset.training} == kept
    for case in dataset.training:
        if case.name in allowed:
            continue
        truth = phantom(case.name)[1]
        _, labels = load_case(case, dataset)
        assert labels is not None
        for label in (1, 2):
            right = voxel_to_world(truth.affine, np.argwhere(truth.array[0] == label))
            got = voxel_to_world(labels.affine, np.argwhere(labels.array[0] == label))
            order, other = (np.lexsort(np.round(points, 3).T) for points in (right, got))
            assert right.shape == got.shape, case.name
            assert np.abs(right[order] - got[other]).max() < 1e-3, case.name
