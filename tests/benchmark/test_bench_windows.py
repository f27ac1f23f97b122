"""Whole volumes with skipping off and on: the ways run what they say, and the table pairs the right rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark.test_bench_files import TINY
from sparseg.benchmark import files_case, windows
from sparseg.benchmark.files_case import LABELS, make_ct
from sparseg.benchmark.files_model import model_card
from sparseg.benchmark.windows import WAYS, bench_windows
from sparseg.benchmark.windows_report import ratio, table_notes, table_rows
from sparseg.checkpoints.folder import save_model
from sparseg.errors import ConfigError
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR


def liver_above_fat(net: SparseUNETR, image: Tensor) -> Tensor:
    """Stand in for `SparseUNETR.forward`: liver above the intensity of fat, else background."""
    ramp = torch.zeros(1, net.config.num_classes, 1, 1, 1)
    ramp[:, 6] = 20.0
    return ramp * (image + 0.4)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a network that looks at intensities only; the memory is not measured, and the CT is tiny."""
    monkeypatch.setitem(files_case.SIZES, "half", TINY)
    monkeypatch.setattr(SparseUNETR, "forward", liver_above_fat)
    monkeypatch.setattr(windows, "peak_of_process", lambda *_, **__: 2**30)
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", num_classes=len(LABELS))
    save_model(tmp_path / "model", net, model_card(net))
    return tmp_path / "model"


def test_skipping_runs_fewer_windows_and_keeps_the_labels(model: Path) -> None:
    said: list[str] = []
    found = bench_windows(model=model, pairs=2, warmup=0, on_progress=said.append)
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == list(WAYS)
    total = rows["all windows"]["num_windows"]
    assert rows["all windows"]["num_skipped"] == 0
    assert all(row["num_windows"] + row["num_skipped"] == total for row in rows.values())
    assert rows["body only"]["num_windows"] < total
    assert rows["all windows"]["same_labels"] == 1
    # Air holds nothing above fat; of the table only its sheets do.
    assert rows["empty skipped"]["same_labels"] == 1
    assert 0.9 < rows["body only"]["same_labels"] <= 1
    assert 0 < rows["all windows"]["dice"] < 0.5
    for row in rows.values():
        assert 0 < row["network_seconds"] < row["seconds"]
        assert len(row["seconds_all"]) == 2
    assert said[-3:] == [f"pair 2 of 2: model, {way}" for way in WAYS]
    assert "no ratio from fewer than 5 pairs" in table_notes(found)
    assert [line[6] for line in table_rows(found)[1:]] == ["-", "-", "-"]


def test_a_preset_brings_the_dense_models_of_its_size(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del model
    changes = {"num_classes": len(LABELS), "patch_size": 4}
    monkeypatch.setattr(
        windows, "build_segmenter", lambda preset, **more: build_segmenter(preset, **{**changes, **more})
    )
    found = bench_windows(preset="test_tiny", pairs=1, warmup=0)
    assert [row["variant"] for row in found["rows"]] == [
        name for name in ("sparse", "dense_p8", "dense_p16") for _ in WAYS
    ]
    assert {row["dice"] for row in found["rows"]} == {None}


def test_a_process_of_its_own_says_its_peak(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = windows._save_models(tmp_path, "", model, "half", 0)
    windows.main([str(folders["model"]), "body only", "--size", "half", "--overlap", "0.5"])
    assert json.loads(capsys.readouterr().out)["peak_memory_bytes"] > 2**26


def test_a_model_for_other_labels_is_refused(tmp_path: Path) -> None:
    net = build_segmenter("test_tiny")
    card = model_card(build_segmenter("test_tiny", num_classes=len(LABELS)))
    labels = {0: "background", **{number: f"organ {number}" for number in range(1, net.config.num_classes)}}
    save_model(tmp_path / "m", net, card.model_copy(update={"model": net.config, "labels": labels}))
    with pytest.raises(ConfigError, match="labels of the synthetic CT"):
        bench_windows(model=tmp_path / "m", pairs=1)
    with pytest.raises(ConfigError, match="pairs must be at least 1"):
        bench_windows(pairs=0)


def test_ratios_are_of_the_same_round() -> None:
    rows = [
        {"variant": "sparse", "way": "all windows", "seconds_all": [2.0, 4.0, 2.0, 4.0, 2.0]},
        {"variant": "sparse", "way": "body only", "seconds_all": [1.0, 1.0, 1.0, 1.0, 1.0]},
        {"variant": "dense_p8", "way": "body only", "seconds_all": [3.0, 3.0, 5.0, 5.0, 5.0]},
    ]
    found = {"rows": rows}
    assert ratio(found, ("sparse", "all windows"), ("sparse", "body only")) == 2.0
    assert ratio(found, ("dense_p8", "body only"), ("sparse", "body only")) == 5.0
    assert ratio(found, ("dense_p8", "all windows"), ("sparse", "body only")) is None
    rows[0]["seconds_all"] = [2.0] * 4
    assert ratio(found, ("sparse", "all windows"), ("sparse", "body only")) is None


def test_the_windows_are_those_of_predict(model: Path) -> None:
    """What is timed is what `sparseg predict` runs, sums included."""
    folders = windows._save_models(model.parent, "", model, "half", 0)
    prepared = windows.prepare(make_ct(*TINY)[0], windows.read_card(folders["model"]).preprocess)
    predictor = windows._predictor(folders["model"], "empty skipped", 0.5)
    done = windows.run_volume(predictor, prepared)
    logits: Tensor = predictor.run_windows(prepared.image).logits
    np.testing.assert_array_equal(done.labels, logits.argmax(dim=0).numpy())
    assert done.labels.max() == 6
