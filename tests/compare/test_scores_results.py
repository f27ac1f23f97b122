"""Scores, kept patches and the table, recomputed here from predictions and networks."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compare.conftest import SPLITS, plan_of, train_here
from sparseg.checkpoints.folder import load_model
from sparseg.compare.cases import Cases, open_cases
from sparseg.compare.kept import count_kept, shares
from sparseg.compare.memory import measure_peak
from sparseg.compare.plan import Comparison, Run, create
from sparseg.compare.report import write_report
from sparseg.compare.results import make_results
from sparseg.compare.scores import RunScores, score_runs
from sparseg.compare.speed import measure_speeds, ratio, spec_of, take_turns
from sparseg.compare.tables import kept_table, quality_table, runs_text, unfinished
from sparseg.crossval.collect import CaseScores
from sparseg.errors import VolumeError
from sparseg.metrics.overlap import dice_of_masks
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.io import read_labels, read_volume

SETTINGS = PredictSettings()
Trained = tuple[Comparison, Cases]


class Watcher:
    """Remembers what was scored anew."""

    def __init__(self) -> None:
        self.fresh: list[tuple[Run, str]] = []

    def on_case(self, *_: object) -> Any:
        return lambda *_: None

    def on_scores(self, run: Run, scores: CaseScores) -> None:
        if not scores.reused:
            self.fresh.append((run, scores.case))


def score(found: Comparison, cases: Cases) -> Any:
    return score_runs(found, cases, SETTINGS, Watcher())


@pytest.mark.slow
def test_the_model_at_the_end_is_scored_on_the_validation_cases(trained: Trained, data: Path) -> None:
    found, cases = trained
    scored = score(found, cases)
    # The last run was interrupted.
    assert list(scored) == found.runs[:-1]
    run = found.runs[2]
    assert [one.case for one in scored[run].cases] == ["a", "b"]
    last = Predictor.from_folder(found.run_folder(run) / "last", SETTINGS)
    expected, _ = last.predict_volume(read_volume(data / "imagesTr" / "a.nii.gz"))
    reference = read_labels(data / "labelsTr" / "a.nii.gz").array[0]
    stored = read_labels(found.predictions(run) / "a.nii.gz").array[0]
    np.testing.assert_array_equal(stored, expected)
    for row, number in zip(scored[run].cases[0].rows, (1, 2), strict=True):
        value = dice_of_masks(expected == number, reference == number)
        assert row["dice"] == (None if np.isnan(value) else value)


@pytest.mark.slow
def test_nothing_is_scored_twice_and_nothing_stale_is_kept(trained: Trained) -> None:
    found, cases = trained
    before, watcher = score(found, cases), Watcher()
    assert score_runs(found, cases, SETTINGS, watcher).keys() == before.keys()
    assert watcher.fresh == []
    first = found.runs[0]
    (found.predictions(first) / "a.nii.gz").write_bytes(b"cut off")
    again = score_runs(found, cases, SETTINGS, watcher)
    assert watcher.fresh == [(first, "a")]
    assert [one.rows for one in again[first].cases] == [one.rows for one in before[first].cases]
    assert again[first].kept == before[first].kept


@pytest.mark.slow
def test_kept_patches_are_those_of_the_network_in_evaluation(trained: Trained) -> None:
    """One window of one patch grid: counted here patch by patch."""
    found, _ = trained
    predictor = Predictor.from_folder(found.model(found.runs[0]), SETTINGS)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 16, 16, 16, generator=generator)
    target = torch.zeros(1, 16, 16, 16, dtype=torch.int64)
    target[0, :4, :4, :8] = 1  # two whole patches, with no boundary inside
    target[0, 9, 9, 9] = 2  # one patch with a boundary
    counts = count_kept(predictor, image, target)
    _, _, decisions = load_model(found.model(found.runs[0]))(image[None], return_selection=True)
    places = {"liver": {0, 1}, "tumor": {2 * 16 + 2 * 4 + 2}}
    for stage, decision in zip(counts, decisions, strict=True):
        kept = set(decision.kept[0].tolist())
        for name, own in places.items():
            assert stage[name] == (len(own & kept), len(own))
        assert stage["foreground"] == (len((places["liver"] | places["tumor"]) & kept), 3)
        assert stage["boundary"] == stage["tumor"]
    assert shares([counts, counts])[0]["liver"] == counts[0]["liver"][0] / 2
    # A volume that is no multiple of the window is covered, and what lies outside counts for nothing.
    larger = count_kept(predictor, F.pad(image, (0, 5)), F.pad(target, (0, 5)))
    assert larger[0]["tumor"][1] >= 1


@pytest.mark.slow
@pytest.mark.usefixtures("quick_memory")
def test_the_table_is_what_the_predictions_give(trained: Trained, data: Path) -> None:
    found, cases = trained
    scored = score(found, cases)
    speeds = measure_speeds(found, cases, device="cpu", rounds=2)
    results = make_results(found, cases, scored, speeds)
    json.dumps(results, allow_nan=False)
    means = {
        name: [run_mean(found, run, data) for run in found.runs[:-1] if run.variant == name]
        for name in found.plan.variants
    }
    for row in results["rows"]:
        own = means[row["variant"]]
        assert row["quality"]["dice"] == pytest.approx(np.mean(own))
        assert row["quality"]["dice_sd"] == (pytest.approx(np.std(own, ddof=1)) if len(own) > 1 else None)
        assert row["quality"]["dice_runs"] == len(own)
    rows = {row["variant"]: row for row in results["rows"]}
    assert rows["dense_p8"]["kept"] == []
    assert len(rows["sparse"]["kept"]) == 3
    # An interrupted run is marked, and nothing stands in for it.
    assert [rows[name]["complete"] for name in ("sparse", "random", "dense_p8")] == [True, True, False]
    assert rows["dense_p8"]["runs"][1]["state"] == "interrupted at step 1"
    assert rows["dense_p8"]["runs"][1]["dice"] is None
    assert unfinished(results) == ["dense_p8, fold 0, seed 1: interrupted at step 1"]
    first = next(one for one in results["comparisons"] if one["metric"] == "dice")
    assert (first["variant"], first["against"]) == ("sparse", "dense_p8")
    # Paired: of seed 0 alone, as the reference has no other.
    assert first["mean"] == pytest.approx(means["sparse"][0] - means["dense_p8"][0])
    assert (first["num_pairs"], first["num_cases"], first["num_seeds"]) == (2, 2, 1)
    assert "one seed" in first["verdict"]
    check_speeds(rows)
    assert [row[0] for row in quality_table(results)] == ["variant", "sparse", "random", "dense_p8"]
    assert [row[:2] for row in kept_table(results)[1:]] == [
        [name, str(stage)] for name in ("sparse", "random") for stage in (1, 2, 3)
    ]
    check_files(found, results)


def run_mean(found: Comparison, run: Run, data: Path) -> float:
    """Mean over cases of the mean over structures, of the label files."""
    means = []
    for name in ("a", "b"):
        pred = read_labels(found.predictions(run) / f"{name}.nii.gz").array[0]
        ref = read_labels(data / "labelsTr" / f"{name}.nii.gz").array[0]
        means.append(np.nanmean([dice_of_masks(pred == number, ref == number) for number in (1, 2)]))
    return float(np.mean(means))


def check_speeds(rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        net_row = row["inference"]
        assert net_row["per_second"] == pytest.approx(1 / np.median(net_row["seconds_all"]))
        # Two rounds give no ratio.
        assert net_row["times_reference"] is None
        assert row["training"]["peak_memory_bytes"] == 2**31
        assert row["training"]["macs"] > 2 * net_row["macs"] > 0
        assert sum(net_row["macs_parts"].values()) == net_row["macs"]
        assert row["file_to_file"]["seconds"] > 0
        assert row["token_counts"][0] == (8 if name == "dense_p8" else 64)
    assert rows["sparse"]["params"] > rows["random"]["params"]


def check_files(found: Comparison, results: dict[str, Any]) -> None:
    results = {**results, "dataset": "<script>alert(1)</script>"}
    write_report(found, results)
    page = (found.folder / "compare.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "dense_p8, fold 0, seed 1: interrupted at step 1" in page
    assert page.count("data:image/png;base64,") == 2
    lines = list(csv.DictReader((found.folder / "table.csv").read_text().splitlines()))
    for line, row in zip(lines, results["rows"], strict=True):
        assert float(line["dice"]) == row["quality"]["dice"]
        assert float(line["training_seconds"]) == row["training"]["seconds"]
    assert lines[2]["state"].endswith("seed 1: interrupted at step 1")
    assert json.loads((found.folder / "results.json").read_text())["rows"] == results["rows"]
    for name in ("pareto.png", "curves.png"):
        assert (found.folder / name).read_bytes().startswith(b"\x89PNG")


def test_distances_are_compared_on_structures_that_both_found(tmp_path: Path, data: Path) -> None:
    """The first model misses the tumor: nearer to the liver on average, and no nearer anywhere."""
    found = create(tmp_path / "out", plan_of("sparse,dense_p8", seeds=(0,)), SPLITS)
    distances = {
        "sparse": {"a": (5.0, None), "b": (None, None)},
        "dense_p8": {"a": (4.0, 20.0), "b": (1.0, None)},
    }
    scored = {
        run: RunScores(
            run,
            tuple(CaseScores(name, 0, structures(*pair)) for name, pair in distances[run.variant].items()),
            (),
        )
        for run in found.runs
    }
    results = make_results(found, open_cases(data), scored, {})
    by_metric = {one["metric"]: one for one in results["comparisons"]}
    assert by_metric["hd95_mm"]["mean"] == 1.0
    assert by_metric["hd95_mm"]["num_pairs"] == 1
    # A structure that is missed has a Dice, of 0.
    assert by_metric["dice"]["mean"] == pytest.approx((0.45 - 0.9 + 0.0 - 0.45) / 2)
    assert by_metric["dice"]["num_pairs"] == 2


def structures(liver: float | None, tumor: float | None) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"name": name, "hd95_mm": distance, "num_pred": 1, "num_ref": 1}
        | dict.fromkeys(("dice", "nsd"), 0.0 if distance is None else 0.9)
        for name, distance in (("liver", liver), ("tumor", tumor))
    )


@pytest.mark.slow
def test_test_cases_with_labels_are_scored_where_there_are_any(trained: Trained) -> None:
    found, cases = trained
    test = replace(cases, test=cases.dataset.training[2:], test_facts=cases.facts[2:])
    assert (cases.source, test.source) == ("validation", "test")
    assert [case.name for case, _ in cases.scored(found.splits, 1)] == ["c", "d"]
    assert [case.name for case, _ in test.scored(found.splits, 0)] == ["c", "d"]


def test_runs_that_wait_are_counted_and_others_told() -> None:
    runs = [
        {"fold": 0, "seed": seed, "finished": seed == 0, "state": state, "failed_cases": []}
        for seed, state in enumerate(("done, 3 steps", "interrupted at step 2", "not started", "not started"))
    ]
    row = {"variant": "sparse", "runs": runs}
    assert runs_text(row) == "1 of 4; fold 0 seed 1: interrupted at step 2; 2 not started"
    assert unfinished({"rows": [row]}) == [
        "sparse, fold 0, seed 1: interrupted at step 2",
        "sparse: 2 of 4 runs not started",
    ]


def test_works_take_turns_and_ratios_need_five_rounds() -> None:
    calls: list[str] = []

    def work(name: str, seconds: float) -> Any:
        def call() -> float:
            calls.append(name)
            return seconds

        return call

    times = dict(take_turns({"a": work("a", 1.0), "b": work("b", 2.0)}, 2, lambda _: None))
    assert calls == ["a", "b"] * 3
    assert times == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    assert ratio([1.0] * 4, [2.0] * 4) is None
    assert ratio([1.0, 1.0, 1.0, 1.0, 9.0], [2.0, 2.0, 3.0, 2.0, 9.0]) == 2.0


@pytest.mark.slow
def test_peak_memory_is_that_of_a_fresh_process(trained: Trained) -> None:
    found, cases = trained
    peak = measure_peak(spec_of(found, cases, "sparse", "cpu"), (16, 16, 16), "training")
    # An interpreter with torch; this process holds more by now.
    assert 2**27 < peak < 2**32


@pytest.mark.slow
def test_a_case_that_fails_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    found, cases = trained

    def fail(*_: object, **__: object) -> None:
        raise VolumeError("an image must be whole", where="a.nii.gz", remedy="copy it again")

    monkeypatch.setattr(Predictor, "predict_volume", fail)
    run = found.runs[0]
    (found.predictions(run) / "index.json").unlink(missing_ok=True)
    one = replace(found, plan=found.plan.model_copy(update={"seeds": (0,)}))
    results = make_results(one, cases, score(one, cases), {})
    assert any(
        "sparse, fold 0, seed 0: a: a.nii.gz: an image must be whole" in line for line in unfinished(results)
    )
    assert results["rows"][0]["inference"] is None


@pytest.mark.slow
def test_equal_seeds_see_equal_crops(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the networks draw for themselves, every rival is shown the same batches."""
    from sparseg.training.objective import Objective

    found, cases = trained
    seen: dict[Run, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    real = Objective.__call__
    elsewhere = replace(found, folder=tmp_path / "out")
    for run in (run for run in found.runs if run.variant != "random"):
        batches = seen.setdefault(run, [])

        def spy(
            self: Any, net: Any, image: Any, target: Any, *args: Any, into: Any = batches, **kw: Any
        ) -> Any:
            into.append((image.clone(), target.clone()))
            return real(self, net, image, target, *args, **kw)

        monkeypatch.setattr(Objective, "__call__", spy)
        settings = elsewhere.settings(run)
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(found.settings(run).read_text())
        (elsewhere.folder / "splits.json").write_text((found.folder / "splits.json").read_text())
        train_here(elsewhere, cases, run, until=2)
    first, dense, second, _ = seen.values()
    assert len(first) == 2
    for (image, target), (other, other_target) in zip(first, dense, strict=True):
        assert torch.equal(image, other)
        assert torch.equal(target, other_target)
    assert not torch.equal(first[0][0], second[0][0])
