"""One run at test_tiny: rows, values, table, refusals. Memory has its own test, for it costs a process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseg.benchmark import model
from sparseg.benchmark.macs import count_macs
from sparseg.benchmark.report import markdown
from sparseg.benchmark.variants import bench_config
from sparseg.errors import ConfigError, InputError

PEAKS = {"sparse": 3 * 2**30, "dense_p8": 4 * 2**30, "naive_sparse": 5 * 2**30}


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "measure_peak_memory", lambda _, name, mode, **__: PEAKS[name] + len(mode))


def metrics(folder: Path) -> Path:
    path = folder / "metrics.json"
    mean = {"dice": 0.8125, "dice_with_empty": 0.9, "hd95_mm": None, "nsd": 0.75}
    path.write_text(json.dumps({"mean": mean, "num_cases": 7}))
    return path


def test_rows_hold_what_was_measured(tmp_path: Path) -> None:
    lines: list[str] = []
    threads = torch.get_num_threads()
    result = model.bench_to_file(
        "test_tiny", tmp_path / "deep" / "bench.json", pairs=1, threads=1, on_progress=lines.append
    )
    assert json.loads((tmp_path / "deep" / "bench.json").read_text()) == json.loads(json.dumps(result))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bench.json"]
    assert set(result) == {"machine", "rows"}
    assert result["machine"]["threads"] == 1
    assert result["machine"]["torch"] == torch.__version__
    assert torch.get_num_threads() == threads
    order = [(row["variant"], row["mode"]) for row in result["rows"]]
    names = ("sparse", "dense_p8", "naive_sparse")
    assert order == [(name, mode) for mode in ("inference", "training") for name in names]
    assert lines[6:12] == [
        f"inference, {label}: {name}" for label in ("warm-up", "pair 1 of 1") for name in names
    ]
    counts = {"sparse": [64, 32, 16, 8], "dense_p8": [8], "naive_sparse": [64, 32, 16, 8]}
    for row in result["rows"]:
        name, mode = row["variant"], row["mode"]
        assert row["token_counts"] == counts[name]
        assert row["macs"] == count_macs(name, bench_config("test_tiny"), mode=mode)[0]
        assert row["peak_memory_bytes"] == PEAKS[name] + len(mode)
        assert row["seconds_all"] == [row["seconds"]] == [row["p10"]] == [row["p90"]]
        assert 0 < row["seconds"] < 10
        assert row["cpu_seconds_all"] == [row["cpu_seconds"]]
        # One thread cannot work for longer than the clock ran.
        assert 0 < row["cpu_seconds"] < 1.1 * row["seconds"] + 0.02
        assert min(row["parts"].values()) > 0
        assert row["quality"] is None
        assert row["quality_note"] == "random weights: see README for quality"
        assert list(row["left_out"]) == ["dense_p16_monai"]
        assert "depth 12" in row["left_out"]["dense_p16_monai"]
        parts = ["encoder", "assembly", "decoder"]
        if mode == "training":
            parts += ["loss", "backward", "optimizer"]
            assert sum(row["parts"].values()) == pytest.approx(row["seconds"])
        assert list(row["parts"]) == parts


def test_no_ratio_from_fewer_than_five_pairs() -> None:
    result = made_up(pairs=4)
    with pytest.raises(InputError, match="at least 5 pairs; received 4"):
        model.ratio_to_sparse(result, "dense_p8", "inference")
    assert [row[7] for row in model.table_rows(result)] == ["time / sparse", "1", "-"]
    assert "no ratio from fewer than 5 pairs" in model.table_notes(result)


def test_the_ratio_is_the_median_of_the_paired_ratios() -> None:
    result = made_up(pairs=5)
    result["rows"][0]["seconds_all"] = [1.0, 2.0, 4.0, 1.0, 1.0]
    result["rows"][1]["seconds_all"] = [3.0, 4.0, 4.0, 2.5, 9.0]
    assert model.ratio_to_sparse(result, "dense_p8", "inference") == 2.5
    assert [row[7] for row in model.table_rows(result)] == ["time / sparse", "1", "2.50x"]
    with pytest.raises(InputError, match="both rows"):
        model.ratio_to_sparse(result, "dense_p8", "training")


def made_up(pairs: int) -> dict[str, Any]:
    """Two rows of a run that never was."""
    shared = {
        "mode": "inference",
        "seconds": 2.0,
        "seconds_all": [2.0] * pairs,
        "p10": 1.5,
        "p90": 2.5,
        "parts": {"encoder": 1.25, "assembly": 0.25, "decoder": 0.5},
        "macs": 132_300_000_000,
        "token_counts": [1728, 172],
        "peak_memory_bytes": 3 * 2**29,
        "quality": None,
        "quality_note": "random weights: see README for quality",
        "preset": "btcv",
        "batch": 1,
        "dtype": "float32",
        "left_out": {"naive_sparse": "not asked for"},
    }
    machine = {"cpu": "C", "threads": 2, "torch": "T", "load_1min": 0.1}
    return {"machine": machine, "rows": [{"variant": name, **shared} for name in ("sparse", "dense_p8")]}


def test_the_table_is_made_from_the_rows() -> None:
    result = made_up(pairs=5)
    result["rows"][0]["quality"] = {"dice": 0.8125}
    result["rows"][0]["quality_note"] = "of trained weights"
    assert markdown(result).splitlines() == [
        "| variant | mode | seconds (p10-p90) | of them | GMACs | tokens | peak GiB | time / sparse | Dice |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| sparse | inference | 2.000 (1.500-2.500) | encoder 1.250, assembly 0.250, decoder 0.500 | 132.3 "
        "| 1728 > 172 | 1.50 | 1 | 0.812 |",
        "| dense_p8 | inference | 2.000 (1.500-2.500) | encoder 1.250, assembly 0.250, decoder 0.500 | 132.3 "
        "| 1728 > 172 | 1.50 | 1.00x | not measured |",
        "",
        "- C, 2 threads, torch T, float32, preset btcv, batch 1, load before the run 0.1",
        "- naive_sparse left out: not asked for",
        "- Dice: of trained weights",
        "- Dice: random weights: see README for quality",
    ]


def test_quality_stands_beside_models_of_equal_output_only(tmp_path: Path) -> None:
    result = model.bench_to_file(
        "test_tiny", quality_file=metrics(tmp_path), pairs=1, warmup=0, modes=["inference"], threads=1
    )
    quality = {row["variant"]: row["quality"] for row in result["rows"]}
    expected = {"dice": 0.8125, "dice_with_empty": 0.9, "hd95_mm": None, "nsd": 0.75, "num_cases": 7}
    assert quality == {"sparse": expected, "dense_p8": None, "naive_sparse": expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "pairs must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"modes": ["inference", "export"]}, "a mode must be one of"),
        ({"modes": []}, "a mode must be one of"),
        ({"device": "tpu"}, "the device must be cpu"),
        ({"variants": ["swin"]}, "a variant must be one of"),
        ({"quality_file": Path("pyproject.toml")}, "quality must be the metrics.json"),
        ({"json_file": Path()}, "writable folder"),
    ],
)
def test_wrong_options_fail_before_anything_is_measured(options: dict[str, Any], message: str) -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError, match=message):
        model.bench_to_file("test_tiny", **options, on_progress=lines.append)
    assert lines == []


def test_a_quality_file_without_means_is_refused(tmp_path: Path) -> None:
    for text in ("[1]", "{}", '{"mean": 3, "num_cases": 1}'):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(ConfigError, match=r"m\.json: quality must be"):
            model.read_quality(tmp_path / "m.json")
