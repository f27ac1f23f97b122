"""`sparseg compare`: real trainings, a kill and a resumption, and what is refused before anything starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from crossval.conftest import write_dataset
from sparseg.compare import speed
from sparseg.compare.plan import read
from sparseg.compare.train import read_state
from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset

RECIPE = {
    "preset": "test_tiny",
    "model": {"feature_size": 2},
    "batch_size": 1,
    "validate_every": 25,
    "overlap": 0.0,
    "num_folds": 3,
}


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data", ("a", "b", "c"))


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def compare(sparseg, dataset, tmp_path):
    """Return `compare(options...)` on the dataset into `out`."""

    def command(*options):
        return sparseg("compare", dataset, "--out", tmp_path / "out", *options)

    return command


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_and_ends(compare, dataset, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "measure_peak", lambda *_: 2**30)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sparseg", "compare", dataset, "--out", out, "--recipe", recipe]
    command += ["--variants", "random,dense_p8", "--seeds", "1", "--max-steps", "50"]
    with (tmp_path / "printed.txt").open("wb") as printed:
        process = subprocess.Popen([str(part) for part in command], stdout=printed, stderr=printed)
    try:
        wait_for_step(out, "dense_p8", 5, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    found = read(out)
    first, second = found.runs
    states = [read_state(found, run) for run in found.runs]
    assert [state.finished for state in states] == [True, False]
    assert f"go on with: sparseg compare {dataset} --out {out}\n" in (tmp_path / "printed.txt").read_text()
    kept = (found.model(first) / "weights.safetensors").stat()

    # What there is can be seen: the run that is not done is marked.
    outcome = compare("--collect", "--no-speed")
    assert outcome.code == 1
    assert not (out / "speed.json").exists()
    line = f"dense_p8, fold 0, seed 0: interrupted at step {states[1].step}"
    assert line in outcome.out
    assert line in (out / "compare.html").read_text()
    rows = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert [row["quality"]["dice"] is None for row in rows] == [False, True]
    assert [row["inference"] for row in rows] == [None, None]
    assert "nothing to compare yet" in outcome.out

    outcome = compare()
    assert outcome.code == 0, outcome
    assert "dense_p8/fold_0/seed_0: done\n" in outcome.out
    assert "random/fold_0/seed_0" not in outcome.out  # neither trained nor scored again
    assert (found.model(first) / "weights.safetensors").stat() == kept
    assert [read_state(found, run).step for run in (first, second)] == [50, 50]
    results = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert all(row["complete"] for row in results["rows"])
    assert results["rows"][0]["inference"]["times_reference"] > 0
    assert results["comparisons"][0]["num_pairs"] == 1


def wait_for_step(out, variant, step, process):
    log = out / "runs" / variant / "fold_0" / "seed_0" / "log.jsonl"
    while not log.exists() or log.read_text().count('"train"') < step:
        assert process.poll() is None
        time.sleep(0.02)


def test_what_is_refused_before_anything_starts(compare, tmp_path):
    compare("--collect").refused("start it first", tmp_path / "out")
    compare("--max-steps", "5", "--max-minutes", "1").refused("one budget")
    compare("--variants", "sparse,nothing").refused("a variant must be", "dense_p16", "received 'nothing'")
    compare("--seeds", "0").refused("--seeds must be at least 1")
    compare("--device-list", "0,,1").refused("device")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_refused_once_the_data_are_known(compare, recipe, tmp_path):
    outcome = compare("--recipe", recipe, "--variants", "sparse", "--folds", "0;1")
    assert (outcome.code, "numbers from 0" in outcome.err) == (2, True)
    # A row of a list would be left out; what is asked for by name must fit.
    outcome = compare("--recipe", recipe, "--variants", "sparse,peer_swin_unetr_tiny")
    assert (outcome.code, "multiples of 32" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rows_of_a_list_that_do_not_fit_are_left_out_and_settings_stay(
    compare, recipe, tmp_path, monkeypatch
):
    from sparseg.cli import compare as command

    monkeypatch.setattr(command, "_train", lambda *_: signal.SIGTERM)
    start = ("--recipe", recipe, "--max-steps", "4", "--seeds", "1")
    assert compare("--variants", "peers_tiny", *start).code == 128 + signal.SIGTERM
    plan = read(tmp_path / "out").plan
    assert {"sparse", "dense_p8", "peer_segresnet_tiny"} <= set(plan.variants)
    assert "multiples of 32" in plan.left_out["peer_swin_unetr_tiny"]
    outcome = compare("--max-steps", "5")
    assert outcome.code == 2
    assert "budget.amount was 4.0, now 5.0" in outcome.err
    assert compare("--variants", "random", "--seeds", "2").code == 128 + signal.SIGTERM
    again = read(tmp_path / "out").plan
    assert set(again.variants) == {*plan.variants, "random"}
    assert again.seeds == (0, 1)
    # Rows that are there need no second look: the settings that all have in common are others.
    more = ("--variants", "stride", "--recipe", recipe)
    outcome = compare(*more, "--set", "optimizer.lr=5e-2")
    assert outcome.code == 2
    assert "settings common to all rows: optimizer.lr was 0.001, now 0.05" in outcome.err
    outcome = compare("--variants", "stride", "--set", "batch_size=4")
    assert "received settings common to all rows: batch_size was 1, now 4;" in outcome.err
    assert compare().code == 128 + signal.SIGTERM
    assert compare(*more).code == 128 + signal.SIGTERM
    assert set(read(tmp_path / "out").plan.variants) == {*again.variants, "stride"}


@pytest.mark.slow
def test_minutes_of_a_recipe_are_the_budget(compare, recipe, tmp_path, monkeypatch):
    from sparseg.cli import compare as command

    monkeypatch.setattr(command, "_train", lambda *_: signal.SIGTERM)
    recipe.write_text(yaml.safe_dump({**RECIPE, "max_minutes": 3}))
    outcome = compare("--recipe", recipe, "--variants", "dense_p8", "--seeds", "1")
    assert "1 runs of 3 minutes" in outcome.out
    row = read(tmp_path / "out").plan.variants["dense_p8"]
    assert row.max_minutes == 3
    assert row.max_steps > 10**6


def test_without_a_recipe_rows_are_built_from_the_papers_kind_of_network(compare, tmp_path, monkeypatch):
    from sparseg.cli import compare as command

    monkeypatch.setattr(command, "_train", lambda *_: signal.SIGTERM)
    outcome = compare("--variants", "sparse,fast", "--max-steps", "4", "--seeds", "1")
    assert outcome.code == 128 + signal.SIGTERM, outcome.err
    plan = read(tmp_path / "out").plan
    assert plan.base["preset"] == "vit_tiny_p8"
    models = {
        name: SegmenterConfig(**{**preset(config.preset), **config.model})
        for name, config in plan.variants.items()
    }
    assert {name: model.pruning_stages for name, model in models.items()} == {
        "sparse": (3, 6, 9),
        "fast": (0,),
    }
    assert [config.selection.elastic_keep for config in plan.variants.values()] == [(), ()]
