"""`check --fix`: broken copies of known anatomy come back where they were, in millimetres."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from predict.grids import AXIS_ORDERS, stored_as, turned
from sparseg.datasets import repair as repair_module
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.findings import Finding
from sparseg.datasets.inspect import inspect_case
from sparseg.datasets.load import load_case
from sparseg.datasets.nonfinite import NONFINITE_MARK
from sparseg.datasets.read import read_dataset
from sparseg.datasets.repair import Exclusion, Repair, repair_dataset
from sparseg.datasets.repair_steps import (
    fill_nonfinite,
    reorient_label,
    resample_label,
    round_label,
)
from sparseg.errors import DatasetError, GeometryError, LabelError, VolumeError
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "liver", 2: "tumor"}


def phantom(seed=0):
    return make_phantom((12, 10, 9), spacing=(1.5, 1.0, 2.0), seed=seed)


def write_labels(path, labels):
    write_label_map(path, np.ascontiguousarray(labels.array[0]).astype(np.uint8), labels.affine)


def write_float(path, volume):
    """Any float values, NaN included, with a sound header: the bytes of a written file, voxels replaced."""
    plain = path.with_name("plain.nii")
    write_image(plain, Volume(np.full_like(volume.array, 0.5, np.float32), volume.affine))
    head = plain.read_bytes()[:352]
    plain.unlink()
    path.write_bytes(head + volume.array[0].astype("<f4").tobytes(order="F"))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path):
    """Dataset of four labelled cases, a to d, and a test case t; files are to be broken by the test."""
    root = tmp_path / "source"
    root.mkdir()
    cases = []
    for seed, name in enumerate("abcdt"):
        image, labels = phantom(seed)
        write_image(root / f"{name}.nii.gz", image)
        write_labels(root / f"{name}_label.nii.gz", labels)
        label = None if name == "t" else root / f"{name}_label.nii.gz"
        cases.append(Case(name, (root / f"{name}.nii.gz",), label))
    return Dataset("toy", ("CT",), LABELS, tuple(cases[:4]), (cases[4],), root, layout="test")


def error(case, repair, code="x"):
    return Finding(code, "error", f"fault of {case}", "remedy", case, repair=repair)


def run(dataset, findings, to, **options):
    reports = [inspect_case(case, dataset) for case in dataset.cases]
    reports = [replace(report, findings=()) for report in reports]
    return repair_dataset(dataset, reports, findings, to, workers=1, **options)


def loaded(root):
    dataset = read_dataset(root)
    return {case.name: load_case(case, dataset) for case in dataset.cases}


# the steps


@pytest.mark.parametrize(("order", "signs"), AXIS_ORDERS)
def test_reordering_gives_the_truth_back_from_every_axis_order(order, signs):
    image, truth = (turned(volume, (15, -10, 20)) for volume in phantom())
    stored = stored_as(truth, order, signs)
    label, detail = reorient_label(stored, image)
    np.testing.assert_array_equal(label.array, truth.array)
    np.testing.assert_array_equal(label.affine, image.affine)
    assert f"all {np.count_nonzero(truth.array)} labelled voxels" in detail


def test_reordering_refuses_other_grids():
    image, labels = phantom()
    moved = labels.affine.copy()
    moved[0, 3] += 3
    with pytest.raises(GeometryError, match="reordered label"):
        reorient_label(Volume(labels.array, moved), image)
    with pytest.raises(GeometryError, match="reordered label"):
        reorient_label(Volume(labels.array[:, :-1], labels.affine), image)
    with pytest.raises(GeometryError, match="same axes"):
        reorient_label(turned(labels, (0, 45, 45)), turned(image, (0, 0, 0)))


def sphere(affine, shape, centre, radius):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = voxel_to_world(affine, grid)
    return np.linalg.norm(world - centre, axis=-1) - radius


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("edge", [0.7, 2.0])
def test_resampling_is_right_in_millimetres(oblique, edge):
    """A sphere stored on another grid: no voxel is wrong further from its surface than half a voxel."""
    centre, radius = np.array([3.0, -2.0, 5.0]), 8.0
    image = Volume(np.zeros((1, 24, 22, 13), np.float32), np.diag([1.5, 1.0, 2.0, 1.0]))
    image.affine[:3, 3] = centre - [17.0, 10.3, 12.1]
    count = int(26 / edge)
    label = Volume(np.zeros((1, count, count, count), np.int32), np.diag([-edge, edge, edge, 1.0]))
    label.affine[:3, 3] = centre + np.array([1, -1, -1]) * edge * (count - 1) / 2 + [0.3, 0.1, -0.2]
    if oblique:
        shift = np.eye(4)
        shift[:3, 3] = centre
        turn = shift @ turned(Volume(label.array, np.eye(4)), (20, 10, -15)).affine @ np.linalg.inv(shift)
        label = Volume(label.array, turn @ label.affine)
    stored = 2 * (sphere(label.affine, label.shape, centre, radius) <= 0).astype(np.int32)
    result, detail = resample_label(Volume(stored[None], label.affine), image)
    distance = sphere(image.affine, image.shape, centre, radius)
    wrong = result.array[0] != 2 * (distance <= 0)
    assert np.abs(distance[wrong]).max(initial=0) <= edge * np.sqrt(3) / 2
    assert set(np.unique(result.array)) == {0, 2}
    places = [np.argwhere(inside) for inside in (result.array[0], distance <= 0)]
    found, expected = (voxel_to_world(image.affine, voxels).mean(axis=0) for voxels in places)
    np.testing.assert_allclose(found, expected, atol=edge / 2)
    np.testing.assert_array_equal(result.affine, image.affine)
    assert detail.count("ml") == 2


def test_resampling_to_the_same_grid_changes_nothing_and_outside_is_background():
    image, labels = phantom()
    np.testing.assert_array_equal(resample_label(labels, image)[0].array, labels.array)
    affine = image.affine.copy()
    affine[:3, 3] -= image.affine[:3, :3] @ [2, 0, 1]
    wider = Volume(np.zeros((1, 16, 10, 11), np.float32), affine)
    result, _ = resample_label(labels, wider)
    np.testing.assert_array_equal(result.array[:, 2:14, :, 1:10], labels.array)
    assert np.count_nonzero(result.array) == np.count_nonzero(labels.array)
    far = labels.affine.copy()
    far[0, 3] += 500
    with pytest.raises(LabelError, match="none of it"):
        resample_label(Volume(labels.array, far), image)


def test_resampling_in_slabs_is_the_same(monkeypatch):
    image, labels = phantom()
    finer = Volume(np.zeros((1, 20, 17, 15), np.float32), image.affine @ np.diag([0.6, 0.6, 0.6, 1]))
    whole = resample_label(labels, finer)[0].array
    monkeypatch.setattr("sparseg.datasets.repair_steps._SLAB_VOXELS", 600)
    np.testing.assert_array_equal(resample_label(labels, finer)[0].array, whole)


def test_rounding_only_what_is_nearly_whole():
    _, labels = phantom()
    values = labels.array.astype(np.float32)
    values[values == 1] = 0.9999
    rounded, detail = round_label(Volume(values, labels.affine))
    np.testing.assert_array_equal(rounded.array, labels.array)
    assert rounded.array.dtype == np.int32
    assert detail == f"{np.count_nonzero(labels.array == 1)} voxels moved by at most 0.0001"
    for bad in (0.5, -1.0, 2.0**25):
        values[0, 0, 0, 0] = bad
        with pytest.raises(LabelError, match="1 voxels"):
            round_label(Volume(values, labels.affine))
    with pytest.raises(VolumeError, match="2 channels"):
        round_label(Volume(np.zeros((2, 3, 3, 3), np.float32), np.eye(4)))


def test_filling_takes_the_lowest_value_of_the_channel():
    image = Volume(np.arange(2 * 27, dtype=np.float32).reshape(2, 3, 3, 3) - 7, np.eye(4))
    marked = Volume(image.array.copy(), np.eye(4))
    marked.array[1, 0, 1, 2] = marked.array[1, 2, 2, 2] = NONFINITE_MARK
    filled, detail = fill_nonfinite(marked, None)
    expected = image.array.copy()
    expected[1, 0, 1, 2] = expected[1, 2, 2, 2] = 20
    np.testing.assert_array_equal(filled.array, expected)
    assert detail == "channel 1: 2 of 27 voxels set to 20"
    labels = np.zeros((1, 3, 3, 3), np.int32)
    labels[0, 2, 2, 2] = 1
    with pytest.raises(VolumeError, match="1 of 2 are"):
        fill_nonfinite(marked, Volume(labels, np.eye(4)))
    marked.array[0] = NONFINITE_MARK
    with pytest.raises(VolumeError, match="without any"):
        fill_nonfinite(marked, None)


# the dataset


def test_sound_files_are_copied_byte_for_byte(source, tmp_path):
    seen = []
    result = run(source, [], tmp_path / "fixed", on_case=seen.append)
    assert result.copied == tuple("abcdt")
    assert (result.repaired, result.excluded) == ((), ())
    assert seen == list("abcdt")
    for name in "abcd":
        assert digest(tmp_path / f"fixed/imagesTr/{name}.nii.gz") == digest(source.root / f"{name}.nii.gz")
        label = tmp_path / f"fixed/labelsTr/{name}.nii.gz"
        assert digest(label) == digest(source.root / f"{name}_label.nii.gz")
    assert digest(tmp_path / "fixed/imagesTs/t.nii.gz") == digest(source.root / "t.nii.gz")
    again = read_dataset(tmp_path / "fixed")
    assert (again.name, again.channels, again.labels) == ("toy", ("CT",), LABELS)
    assert [case.name for case in again.training] == list("abcd")
    assert not (tmp_path / "fixed/labelsTs").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed", "source"]


def test_every_repair_gives_the_known_truth(source, tmp_path):
    root = source.root
    truth = {name: phantom(seed) for seed, name in enumerate("abcdt")}
    write_labels(root / "a_label.nii.gz", stored_as(truth["a"][1], (2, 0, 1), (1, -1, 1)))
    double = Volume(np.repeat(truth["b"][1].array, 2, axis=1), truth["b"][1].affine.copy())
    double.affine[:3, 0] /= 2
    double.affine[0, 3] -= 1.5 / 4
    write_labels(root / "b_label.nii.gz", double)
    fractional = truth["c"][1].array.astype(np.float32)
    fractional[fractional == 2] = 1.9995
    write_float(root / "c_label.nii", Volume(fractional, truth["c"][1].affine))
    holes = truth["d"][0].array.copy()
    outside = np.argwhere(truth["d"][1].array[0] == 0)[:2]
    for value, place in zip((np.nan, -np.inf), outside, strict=True):
        holes[(0, *place)] = value
    write_float(root / "d.nii", Volume(holes, truth["d"][0].affine))
    cases = list(source.training)
    cases[2] = replace(cases[2], label=root / "c_label.nii")
    cases[3] = replace(cases[3], images=(root / "d.nii",))
    dataset = replace(source, training=tuple(cases))
    findings = [
        error("a", "reorient-label"),
        error("b", "resample-label"),
        error("c", "round-label"),
        error("d", "fill-nonfinite"),
        Finding("unit", "note", "metres", "none", "t", repair="convert-units"),
    ]
    before = {path: digest(path) for path in root.iterdir()}
    result = run(dataset, findings, tmp_path / "fixed")
    assert before == {path: digest(path) for path in root.iterdir()}
    assert [(r.case, r.repair) for r in result.repaired] == [
        ("a", "reorient-label"),
        ("b", "resample-label"),
        ("c", "round-label"),
        ("d", "fill-nonfinite"),
        ("t", "convert-units"),
    ]
    assert (result.excluded, result.copied) == ((), ())
    assert "2 of 1080 voxels" in result.repaired[3].detail
    found = loaded(tmp_path / "fixed")
    for name, (image, labels) in truth.items():
        expected = image.array.copy()
        if name == "d":
            lowest = holes[np.isfinite(holes)].min()
            expected[0, outside[:, 0], outside[:, 1], outside[:, 2]] = lowest
        np.testing.assert_array_equal(found[name][0].array, expected)
        np.testing.assert_allclose(found[name][0].affine, image.affine, atol=1e-5)
        if name != "t":
            np.testing.assert_array_equal(found[name][1].array, labels.array)
    record = json.loads((tmp_path / "fixed/repairs.json").read_text())
    assert [entry["case"] for entry in record["repairs"]] == list("abcdt")
    assert str(root) not in json.dumps(record)


def test_cases_beyond_repair_are_left_out_by_name(source, tmp_path):
    shifted = phantom(1)[1]
    shifted.affine[0, 3] += 40
    write_labels(source.root / "b_label.nii.gz", shifted)
    findings = [
        error("a", "reorient-label"),
        error("a", "", code="grid-position"),
        error("b", "resample-label"),
        error("c", "drop-duplicate"),
        error("z", "", code="label-missing"),
        Finding("spacing", "warning", "odd", "look", "d"),
    ]
    result = run(source, findings, tmp_path / "fixed")
    assert result.excluded == (
        Exclusion("a", "grid-position: fault of a"),
        Exclusion("b", result.excluded[1].reason),
        Exclusion("z", "label-missing: fault of z"),
    )
    assert "none of it in the image" in result.excluded[1].reason
    assert ".part" not in result.excluded[1].reason
    assert result.repaired == (Repair("c", "drop-duplicate", "left out: fault of c"),)
    assert result.copied == ("d", "t")
    assert sorted(p.name for p in (tmp_path / "fixed/imagesTr").iterdir()) == ["d.nii.gz"]
    assert sorted(p.name for p in (tmp_path / "fixed").iterdir()) == [
        "dataset.json", "imagesTr", "imagesTs", "labelsTr", "repairs.json",
    ]  # fmt: skip


def test_a_repair_that_does_not_help_leaves_the_case_out(source, tmp_path):
    _, labels = phantom(0)
    labels.array[0, 0, 0, 0] = 9
    write_labels(source.root / "a_label.nii.gz", stored_as(labels, (1, 0, 2), (1, 1, 1)))
    result = run(source, [error("a", "reorient-label")], tmp_path / "fixed")
    (exclusion,) = result.excluded
    assert exclusion.case == "a"
    assert "9 (1 voxels)" in exclusion.reason
    assert [case.name for case in read_dataset(tmp_path / "fixed").training] == list("bcd")
    assert not list((tmp_path / "fixed").rglob("a.nii*"))


def test_labelled_holes_are_not_filled(source, tmp_path):
    image, labels = phantom(0)
    image.array[(0, *np.argwhere(labels.array[0] == 1)[0])] = np.nan
    write_float(source.root / "a.nii", image)
    broken = replace(source.training[0], images=(source.root / "a.nii",))
    dataset = replace(source, training=(broken, *source.training[1:]))
    result = run(dataset, [error("a", "fill-nonfinite")], tmp_path / "fixed")
    assert "must not be labelled" in result.excluded[0].reason


def test_channels_masks_subjects_and_found_labels(source, tmp_path):
    """Several files per image and per label become one each; ids are found where none are declared."""
    root = source.root
    image, labels = phantom(0)
    second = Volume(np.round(image.array) + 3, image.affine)
    write_image(root / "a1.nii.gz", second)
    for number in (1, 2):
        mask = Volume((labels.array == number).astype(np.int32), labels.affine)
        write_labels(root / f"m{number}.nii.gz", stored_as(mask, (0, 2, 1), (-1, 1, 1)))
    masks = (("liver", root / "m1.nii.gz"), ("tumor", root / "m2.nii.gz"))
    case = Case("a", (root / "a.nii.gz", root / "a1.nii.gz"), masks=masks, subject="p", fold=1)
    regions = {"all": (1, 2)}
    dataset = replace(source, channels=("T1", "T2"), training=(case,), test=(), regions=regions)
    result = run(dataset, [error("a", "reorient-label")], tmp_path / "fixed")
    assert [repair.detail.split(":")[0] for repair in result.repaired] == ["liver", "tumor"]
    found = loaded(tmp_path / "fixed")["a"]
    np.testing.assert_array_equal(found[0].array, np.concatenate([image.array, second.array]))
    np.testing.assert_array_equal(found[1].array, labels.array)
    content = json.loads((tmp_path / "fixed/dataset.json").read_text())
    assert content["training"] == [
        {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", "subject": "p", "fold": 1}
    ]
    assert content["regions"] == {"all": [1, 2]}
    bare = replace(source, labels={}, training=source.training[:2])
    run(bare, [], tmp_path / "bare")
    assert read_dataset(tmp_path / "bare").labels == {0: "background", 1: "label 1", 2: "label 2"}


def test_two_cases_of_one_name_are_both_left_out(source, tmp_path):
    twin = replace(source.training[1], name="A")
    dataset = replace(source, training=(*source.training, twin))
    result = run(dataset, [], tmp_path / "fixed")
    assert [exclusion.case for exclusion in result.excluded] == ["a", "A"]
    assert result.copied == ("b", "c", "d", "t")


@pytest.mark.parametrize("where", ["source", "source/fixed", ".", "filled", "file"])
def test_targets_that_are_refused(source, tmp_path, where):
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled/x").write_text("kept")
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError, match="new or empty folder"):
        run(source, [], tmp_path / where)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_target_is_taken_and_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    (tmp_path / "fixed").mkdir()
    with pytest.raises(DatasetError, match="at least one labelled case"):
        run(source, [error(name, "") for name in "abcd"], tmp_path / "fixed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed", "source"]
    assert not list((tmp_path / "fixed").iterdir())

    def full(*_args):
        raise VolumeError("full", remedy="free space", code="write-failed")

    with monkeypatch.context() as patch:
        patch.setattr("sparseg.datasets.repair_write.copy_file", full)
        with pytest.raises(VolumeError, match="full"):
            run(source, [], tmp_path / "fixed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed", "source"]
    run(source, [], tmp_path / "fixed")
    assert len(read_dataset(tmp_path / "fixed").cases) == 5
    assert set(repair_module.REPAIRS) >= {"round-label", "drop-duplicate"}


@pytest.mark.slow
def test_worker_processes_give_the_same_files(source, tmp_path):
    reports = [inspect_case(case, source) for case in source.cases]
    repair_dataset(source, reports, [], tmp_path / "one", workers=1)
    repair_dataset(source, reports, [], tmp_path / "two", workers=2)
    files = [
        sorted(p.relative_to(root) for p in root.rglob("*")) for root in (tmp_path / "one", tmp_path / "two")
    ]
    assert files[0] == files[1]
    for path in files[0]:
        if (tmp_path / "one" / path).is_file():
            assert digest(tmp_path / "one" / path) == digest(tmp_path / "two" / path)
