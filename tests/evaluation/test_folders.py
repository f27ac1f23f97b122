"""Folder against folder: pairing, refusals, means."""

import json
import math

import numpy as np
import pytest

from sparseg.errors import DatasetError, GeometryError, LabelError
from sparseg.evaluation.folders import evaluate_folders, summary_table
from sparseg.volumes.io import read_labels
from sparseg.volumes.nifti_writer import write_label_map
from sparseg.volumes.seg_nrrd import write_seg_nrrd

LABELS = {0: "background", 1: "liver", 2: "tumor"}
AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])


def block(label, start, edge=4):
    labels = np.zeros((14, 12, 10), np.uint8)
    labels[tuple(slice(s, s + edge) for s in start)] = label
    return labels


@pytest.fixture
def folders(tmp_path):
    """Two cases: `a` is off by one voxel along axis 0, `b` has only a false positive tumor."""
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    pred.mkdir()
    ref.mkdir()
    write_label_map(ref / "a.nii.gz", block(1, (3, 3, 3)), AFFINE)
    write_label_map(pred / "a.nii.gz", block(1, (4, 3, 3)), AFFINE)
    write_label_map(ref / "b.nii", block(1, (3, 3, 3)), AFFINE)
    write_label_map(pred / "b.nii.gz", block(1, (3, 3, 3)) + block(2, (8, 8, 6)), AFFINE)
    return pred, ref


def test_scores_per_case_and_means(folders, tmp_path):
    out = tmp_path / "deep" / "metrics.json"
    result = evaluate_folders(*folders, labels=LABELS, out=out)
    (liver_a, tumor_a), (liver_b, tumor_b) = (case["classes"] for case in result["cases"])
    assert liver_a["dice"] == pytest.approx(0.75)
    assert liver_a["hd95_mm"] == pytest.approx(2.0)
    assert (liver_a["num_pred"], liver_a["num_ref"]) == (64, 64)
    assert (tumor_a["dice"], tumor_a["hd95_mm"], tumor_a["nsd"]) == (None, None, None)
    assert (liver_b["dice"], liver_b["hd95_mm"], liver_b["nsd"]) == (1, 0, 1)
    assert (tumor_b["dice"], tumor_b["hd95_mm"], tumor_b["nsd"]) == (0, None, 0)
    assert (tumor_b["num_pred"], tumor_b["num_ref"]) == (64, 0)
    liver, tumor = result["classes"]
    assert (liver["dice"], liver["dice_count"], liver["hd95_mm"]) == (pytest.approx(0.875), 2, 1)
    assert (tumor["dice"], tumor["dice_count"], tumor["dice_with_empty"]) == (0, 1, 0.5)
    assert (tumor["hd95_mm"], tumor["hd95_mm_count"]) == (None, 0)
    assert result["mean"]["dice"] == pytest.approx(0.875 / 2)
    assert result["mean"]["dice_with_empty"] == pytest.approx((0.875 + 0.5) / 2)
    assert json.loads(out.read_text()) == result
    assert [path.name for path in out.parent.iterdir()] == ["metrics.json"]


def test_predictions_of_3d_slicer_find_their_reference(folders):
    pred, ref = folders
    as_nifti = evaluate_folders(pred, ref, labels=LABELS)
    for path, name in ((pred / "a.nii.gz", "a.seg.nrrd"), (pred / "b.nii.gz", "b.SEG.NRRD")):
        labels = read_labels(path)
        colours = {1: (255, 0, 0), 2: (0, 255, 0)}
        write_seg_nrrd(
            pred / name,
            labels.array[0].astype(np.uint8),
            labels.affine,
            label_names=LABELS,
            label_colours=colours,
        )
        path.unlink()
    assert evaluate_folders(pred, ref, labels=LABELS)["classes"] == as_nifti["classes"]


def test_table_for_the_terminal(folders):
    rows = summary_table(evaluate_folders(*folders, labels=LABELS))
    assert rows[1][:4] == ["liver", "2", "0.875", "0.875"]
    assert rows[2] == ["tumor", "1", "0", "0.5", "-", "0"]
    assert rows[3][:3] == ["mean", "2", "0.4375"]
    assert len({len(row) for row in rows}) == 1


def test_without_labels_the_occurring_ids_are_scored(folders):
    result = evaluate_folders(*folders)
    assert result["labels"] == {"0": "background", "1": "label 1", "2": "label 2"}


def test_missing_and_extra_predictions(folders):
    pred, ref = folders
    write_label_map(pred / "c.nii.gz", block(1, (0, 0, 0)), AFFINE)
    assert evaluate_folders(pred, ref, labels=LABELS)["extra"] == ["c"]
    (pred / "a.nii.gz").unlink()
    with pytest.raises(DatasetError, match="1 of 2 missing: a"):
        evaluate_folders(pred, ref, labels=LABELS)
    write_label_map(pred / "b.nii", block(1, (0, 0, 0)), AFFINE)
    with pytest.raises(DatasetError, match="one file"):
        evaluate_folders(pred, ref, labels=LABELS)
    with pytest.raises(DatasetError, match="folders"):
        evaluate_folders(pred / "none", ref)


@pytest.mark.parametrize("column", [3, 0])
def test_other_grids_and_unknown_ids_leave_no_file(folders, tmp_path, column):
    pred, ref = folders
    moved = AFFINE.copy()
    moved[0, column] = moved[0, column] * -1 + (10 if column == 3 else 0)
    write_label_map(pred / "b.nii.gz", block(1, (3, 3, 3)), moved)
    with pytest.raises(GeometryError, match="prediction and reference"):
        evaluate_folders(pred, ref, labels=LABELS, out=tmp_path / "m.json")
    write_label_map(pred / "b.nii.gz", block(9, (3, 3, 3)), AFFINE)
    with pytest.raises(LabelError, match="9 \\(64 voxels\\)"):
        evaluate_folders(pred, ref, labels=LABELS, out=tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_all_empty_is_defined(tmp_path):
    for folder in ("pred", "ref"):
        (tmp_path / folder).mkdir()
        write_label_map(tmp_path / folder / "a.nii.gz", block(0, (0, 0, 0)), AFFINE)
    result = evaluate_folders(tmp_path / "pred", tmp_path / "ref", labels=LABELS)
    assert result["mean"]["dice"] is None
    assert result["mean"]["dice_with_empty"] == 1
    assert not math.isnan(result["mean"]["nsd_with_empty"])
