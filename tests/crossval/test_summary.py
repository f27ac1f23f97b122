"""Means, deviations and their rules for empty structures, by value."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sparseg.crossval.collect import CaseScores
from sparseg.crossval.summary import summarise, summary_text, table, write_summary
from sparseg.datasets.dataset import Dataset
from sparseg.errors import VolumeError


def row(name, dice, hd95=None, nsd=None):
    return {"name": name, "dice": dice, "hd95_mm": hd95, "nsd": nsd, "num_pred": 5, "num_ref": 5}


SCORED = [
    CaseScores("a", 0, (row("liver", 0.9, 2.0, 0.8), row("tumor", 0.5, 6.0, 0.4))),
    CaseScores("c", 0, (row("liver", 0.7, 4.0, 0.6), row("tumor", 0.0, None, 0.0))),  # missed
    CaseScores("b", 1, (row("liver", 0.8, 3.0, 0.7), row("tumor", None, None, None))),  # absent, rightly
    CaseScores("d", 1, error=VolumeError("the image must be whole", remedy="copy it again", code="cut")),
]


@pytest.fixture
def dataset(tmp_path):
    return Dataset("toy|1", ("CT",), {0: "background", 1: "liver", 2: "tumor"}, (), (), tmp_path)


@pytest.fixture
def summary(trained, dataset):
    return summarise(trained, dataset, SCORED)


def test_structures(summary):
    liver, tumor = summary["structures"]
    assert liver["name"] == "liver"
    assert liver["dice"] == pytest.approx(0.8)
    assert liver["dice_sd"] == pytest.approx(0.1)
    assert liver["hd95_mm"] == pytest.approx(3.0)
    assert liver["hd95_mm_sd"] == pytest.approx(1.0)
    assert liver["nsd_count"] == 3
    assert tumor["dice"] == pytest.approx(0.25)
    assert tumor["dice_sd"] == pytest.approx(np.std([0.5, 0.0], ddof=1))
    assert tumor["dice_count"] == 2
    assert tumor["dice_with_empty"] == pytest.approx(0.5)
    assert (tumor["hd95_mm"], tumor["hd95_mm_sd"], tumor["hd95_mm_count"]) == (6.0, None, 1)


def test_mean_over_structures_and_its_spread_over_cases(summary):
    assert summary["mean"]["dice"] == pytest.approx((0.8 + 0.25) / 2)
    assert summary["mean"]["dice_sd"] == pytest.approx(np.std([0.7, 0.35, 0.8], ddof=1))
    assert summary["mean"]["hd95_mm"] == pytest.approx((3.0 + 6.0) / 2)


def test_folds(summary):
    first, second = summary["folds"]
    assert first["cases"] == ["a", "c"]
    assert first["num_training"] == 2
    assert first["mean"]["dice"] == pytest.approx((0.8 + 0.25) / 2)
    assert second["cases"] == ["b"]
    assert second["mean"]["dice"] == pytest.approx(0.8)
    assert [fold["finished"] for fold in summary["folds"]] == [True, True]
    assert [fold["steps"] for fold in summary["folds"]] == [2, 2]
    hashes = [fold["model"]["weights_sha256"] for fold in summary["folds"]]
    assert len({*hashes, ""}) == 3
    spread = summary["fold_spread"]["dice"]
    assert spread["mean"] == pytest.approx((0.525 + 0.8) / 2)
    assert spread["sd"] == pytest.approx(abs(0.8 - 0.525) / math.sqrt(2))
    assert summary["fold_spread"]["hd95_mm"]["mean"] == pytest.approx((4.5 + 3.0) / 2)


def test_the_rest(summary):
    assert summary["num_cases"] == 3
    assert summary["seeds"] == {"training": 5, "folds": 3}
    assert summary["failed"] == [
        {"case": "d", "fold": 1, "code": "cut", "message": str(SCORED[-1].error)},
    ]
    assert summary["not_predicted"] == []
    assert summary["validates_on_training"] is False
    assert set(summary["versions"]) == {"sparseg", "torch", "monai"}


def test_files_are_strict_json_and_a_table(summary, trained):
    write_summary(trained, summary)
    read = json.loads((trained.folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert read == json.loads(json.dumps(summary))
    lines = (trained.folder / "summary.md").read_text().splitlines()
    assert lines[0] == "# Cross-validation of toy|1"
    assert "| liver | 3 | 0.8000 ± 0.1000 | 3.00 ± 1.00 | 0.7000 ± 0.1000 | 0.8000 |" in lines
    assert "| tumor | 2 | 0.2500 ± 0.3536 | 6.00 | 0.2000 ± 0.2828 | 0.5000 |" in lines
    assert "| fold 1 | 1 | 0.8000 | 3.00 | 0.7000 | 0.9000 |" in lines
    assert "Mean Dice of the folds: 0.6625 ± 0.1945 over folds." in lines
    assert f"- d: {SCORED[-1].error}" in lines


def test_table_has_one_row_per_structure_and_fold(summary):
    assert [cells[0] for cells in table(summary)] == ["", "liver", "tumor", "mean", "fold 0", "fold 1"]
    assert len({len(cells) for cells in table(summary)}) == 1


def test_what_cannot_be_trusted_is_said(trained, dataset):
    same = trained.splits.__class__((("a", "c"),))  # one patient: it trains and validates
    found = trained.__class__(trained.folder, trained.config, same)
    text = summary_text(summarise(found, dataset, SCORED[:2]))
    assert "**Training and validation share cases" in text


def test_no_case_at_all_gives_no_number(trained, dataset):
    summary = summarise(trained, dataset, SCORED[3:])
    assert summary["mean"]["dice"] is None
    json.dumps(summary, allow_nan=False)
    assert "| mean | 0 | - | - | - | - |" in summary_text(summary)
