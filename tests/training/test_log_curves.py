"""The log under rough treatment, and what its picture shows."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from sparseg.errors import CheckpointError
from sparseg.training import log
from sparseg.training.curves import (
    flatten,
    progress_figure,
    running_mean,
    selection_curves,
    series,
    shares_by_stage,
    thin,
)


def train_row(step: int, **values: Any) -> dict[str, Any]:
    row = {
        "kind": "train",
        "step": step,
        "loss": 1 / step,
        "lr": 1e-3,
        "seconds": 0.5,
        "data_wait_share": 0.1,
    }
    return row | values


def test_numbers_of_every_kind_are_plain_json(tmp_path: Path) -> None:
    selection = {
        "kept/0/class 1": math.nan,
        "nested": {"a": np.float32(0.5), "b": (1, math.inf)},
        3: np.int64(7),
    }
    log.append(tmp_path, train_row(1, loss=np.float64(-math.inf), selection=selection))
    (row,) = log.read(tmp_path)
    assert row["loss"] is None
    assert row["selection"] == {"kept/0/class 1": None, "nested": {"a": 0.5, "b": [1, None]}, "3": 7}
    assert "NaN" not in (tmp_path / log.LOG).read_text()


def test_each_row_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: written.append(data) or write(file, data))
    log.append(tmp_path, train_row(1))
    log.append(tmp_path, train_row(2))
    assert len(written) == 2
    assert b"".join(written) == (tmp_path / log.LOG).read_bytes()


def test_rows_of_several_writers_stay_whole(tmp_path: Path) -> None:
    def write(first: int) -> None:
        for step in range(first, first + 50):
            log.append(tmp_path, train_row(step, note="x" * 3000))

    threads = [threading.Thread(target=write, args=(1 + 50 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["step"] for row in log.read(tmp_path)) == list(range(1, 201))


def test_a_cut_off_line_does_not_swallow_the_next_row(tmp_path: Path) -> None:
    log.append(tmp_path, train_row(1))
    log.append(tmp_path, train_row(2))
    file = tmp_path / log.LOG
    file.write_bytes(file.read_bytes()[:-5])
    log.append(tmp_path, train_row(3))
    assert [row["step"] for row in log.read(tmp_path)] == [1, 3]


def test_a_line_blanked_by_a_power_cut_is_left_out(tmp_path: Path) -> None:
    log.append(tmp_path, train_row(1))
    with (tmp_path / log.LOG).open("ab") as stream:
        stream.write(b"\0" * 80 + b"\n\xff\xfe\n[1, 2]\n{}\n")
    log.append(tmp_path, train_row(2))
    assert [row["step"] for row in log.read(tmp_path)] == [1, 2]
    log.truncate(tmp_path, 2)
    for line in (tmp_path / log.LOG).read_text().splitlines():
        json.loads(line)


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(tmp_path, train_row(1))
    before = (tmp_path / log.LOG).read_bytes()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:7]))
        with pytest.raises(CheckpointError, match="free space"):
            log.append(tmp_path, train_row(2))
    assert (tmp_path / log.LOG).read_bytes() == before
    log.append(tmp_path, train_row(2))
    assert [row["step"] for row in log.read(tmp_path)] == [1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / log.LOG).symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"log\.jsonl.*No space left"):
        log.append(tmp_path, train_row(1))


def test_running_mean_by_hand() -> None:
    values = np.array([1.0, math.nan, 3.0, 8.0, math.nan, math.nan])
    assert running_mean(values, 2) == pytest.approx([1, 1, 3, 5.5, 8, math.nan], nan_ok=True)
    assert running_mean(values, 1) == pytest.approx(values, nan_ok=True)
    assert running_mean(np.zeros(0), 3).shape == (0,)


def test_thinning_averages_neighbours() -> None:
    steps, values = np.arange(1.0, 9.0), np.array([1.0, 3.0, math.nan, 5.0, math.nan, math.nan, 0.0, 2.0])
    at, means = thin((steps, values), 4)
    assert at == pytest.approx([1.5, 3.5, 5.5, 7.5])
    assert means == pytest.approx([2, 5, math.nan, 1], nan_ok=True)
    assert thin((steps, values), 8)[0] is steps
    at, means = thin((np.arange(10_007.0), np.ones(10_007)))
    assert len(at) == 2000
    assert means.sum() == 2000
    assert at.mean() == pytest.approx(5003, rel=1e-3)


def test_series_take_the_rows_that_have_the_value() -> None:
    at, values = series([{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": None}], "a")
    assert at.tolist() == [1, 3]
    assert values == pytest.approx([2, math.nan], nan_ok=True)


def test_selection_is_sorted_by_stage() -> None:
    assert flatten({"kept": {"0": {"boundary": 1.0}}, "x": 2}) == {"kept/0/boundary": 1.0, "x": 2}
    rows = [
        train_row(5, selection={"kept/10/class 1": 0.2, "kept/2/class 1": 0.5, "agreement/2": 0.9}),
        train_row(6),
        train_row(7, selection={"kept": {"2": {"class 1": 0.4, "foreground": None}}}),
    ]
    curves = selection_curves(rows)
    assert list(curves) == ["kept/10/class 1", "kept/2/class 1", "agreement/2", "kept/2/foreground"]
    stages = shares_by_stage(curves)
    assert list(stages) == [2, 10]
    assert stages[2]["class 1"][0].tolist() == [5, 7]
    assert stages[2]["class 1"][1].tolist() == [0.5, 0.4]


def lines(figure: Figure) -> dict[str, np.ndarray]:
    """Values of every labelled line."""
    return {
        str(line.get_label()): np.asarray(line.get_ydata())
        for axes in figure.get_axes()
        for line in axes.get_lines()
    }


def validation(step: int, **dice: float | None) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "dice": dice, "mean_dice": 0.5}


def test_the_picture_shows_loss_dice_rate_and_speed() -> None:
    rows = [train_row(step, crops_per_second=4.0) for step in range(1, 5)]
    rows += [validation(2, liver=0.4, tumor=None), validation(4, liver=0.6, tumor=0.1)]
    figure = progress_figure(rows)
    found = lines(figure)
    assert found["loss"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert found["liver"] == pytest.approx([0.4, 0.6])
    assert found["tumor"] == pytest.approx([math.nan, 0.1], nan_ok=True)
    assert found["mean Dice"] == pytest.approx([0.5, 0.5])
    labels = [axes.get_ylabel() for axes in figure.get_axes()]
    assert labels == [
        "training loss", "validation Dice", "learning rate", "crops per second", "waiting for data, %"
    ]  # fmt: skip


def test_the_picture_shows_what_each_stage_keeps() -> None:
    selection = {
        "tokens/0": 64.0,
        "kept/1/foreground": 0.9,
        "kept/2/foreground": 0.5,
        "kept_eval/2/foreground": 0.3,
        "agreement/1": 0.8,
        "agreement/2": 0.6,
    }
    rows = [train_row(step, selection=selection) for step in (1, 2)]
    figure = progress_figure(rows)
    titles = [axes.get_title() for axes in figure.get_axes() if axes.get_title()]
    assert titles == [
        "present after pruning stage 1",
        "present after pruning stage 2",
        "agreement with evaluation",
    ]
    assert lines(figure)["stage 2"] == pytest.approx([0.6, 0.6])
    second = next(axes for axes in figure.get_axes() if axes.get_title().endswith("stage 2"))
    kept = [np.asarray(line.get_ydata()).tolist() for line in second.get_lines()]
    assert kept == [[0.5, 0.5], [0.3, 0.3]]


@pytest.mark.parametrize(
    "rows", [[], [train_row(1, loss=None)], [validation(1)], [train_row(1, selection={})]]
)
def test_logs_with_next_to_nothing_can_be_drawn(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        log.append(tmp_path, row)
    log.draw(tmp_path)
    assert (tmp_path / log.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_long_run_is_drawn_with_few_points() -> None:
    rows = [train_row(step, crops_per_second=1.0) for step in range(1, 20_001)]
    begun = time.monotonic()
    figure = progress_figure(rows)
    assert max(len(line.get_ydata()) for axes in figure.get_axes() for line in axes.get_lines()) == 2000
    assert time.monotonic() - begun < 10
