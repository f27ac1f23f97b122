"""Fleets: one worker in this process without Ray, and real ones that Ray runs, dying ones among them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from predict.batch_tools import Notes, write_cases
from sparseg.cli.main import run
from sparseg.errors import MissingExtraError
from sparseg.predict import fleet as fleet_module
from sparseg.predict.batch import predict_cases
from sparseg.predict.claims import Claims, this_process
from sparseg.predict.ensemble import load_predictor
from sparseg.predict.fleet import Fleet, predict_fleet
from sparseg.predict.fleet_worker import MAX_TRIES, Orders, Worker
from sparseg.predict.run_folder import RunFolder
from sparseg.predict.settings import PredictSettings

TESTS = Path(__file__).parent.parent
SETTINGS = PredictSettings(overlap=0.5)


@pytest.fixture
def orders(model_folder, tmp_path):
    """Orders for three cases, with the claims of the process that runs the fleet."""
    cases = write_cases(tmp_path / "in", 3)
    folder = RunFolder(tmp_path / "out", cases, load_predictor([model_folder], SETTINGS))
    folder.make()
    owner = this_process("resume", folder.key.settings_sha256)
    with Claims(folder.rows, owner) as claims:
        claims.enter_run(folder.sweep)
        claims.take(".fleet-test")
        yield Orders((model_folder,), SETTINGS, tuple(cases), folder.out, owner, ".fleet-test")


def row_of(orders, number):
    return json.loads((orders.out / "report" / f"{orders.cases[number].name}.json").read_text())


def left_over(orders):
    """Files among the rows that are neither rows nor claims of the process that runs the fleet."""
    names = {path.name for path in (orders.out / "report").iterdir() if path.suffix != ".json"}
    return names - {".lock", ".fleet-test.claim", f".run-{orders.owner.token}.claim"}


def test_a_worker_writes_what_a_plain_run_writes(orders, model_folder, tmp_path):
    (outcome,) = Worker(orders)({"number": [1]})["outcome"]
    case = orders.cases[1]
    plain = replace(case, output=tmp_path / "plain" / case.output.name)
    predictor = load_predictor([model_folder], SETTINGS)
    assert predict_cases(predictor, [plain], plain.output.parent, Notes()) == []
    assert case.output.read_bytes() == plain.output.read_bytes()
    assert outcome.number == 1
    assert outcome.result.num_windows == row_of(orders, 1)["num_windows"] > 0
    assert row_of(orders, 1)["settings_sha256"] == orders.owner.settings_sha256
    assert left_over(orders) == set()


def test_a_worker_reuses_redoes_and_leaves_to_others(orders):
    worker = Worker(replace(orders, resume=True))
    assert worker.run(0).result is not None
    assert worker.run(0).reused["case"] == orders.cases[0].name
    orders.cases[0].output.write_bytes(b"stump")
    assert worker.run(0).why == "its file is not the one that was written"
    other = Claims(orders.out / "report", this_process("resume", orders.owner.settings_sha256))
    assert other.take(orders.cases[1].name)
    outcome = worker.run(1)
    assert (outcome.result, outcome.reused, outcome.error) == (None, None, None)
    other.drop(orders.cases[1].name)
    assert worker.run(1).result is not None
    assert left_over(orders) == set()


def test_a_bad_case_is_an_error_of_its_own(orders):
    orders.cases[0].image.write_bytes(b"broken")
    worker = Worker(orders)
    outcome = worker.run(0)
    assert (outcome.error.code, outcome.unfit) == (row_of(orders, 0)["code"], False)
    assert row_of(orders, 0)["status"] == "error"
    assert worker.run(1).result is not None


def test_a_case_that_killed_two_workers_has_failed(orders):
    name = orders.cases[2].name
    tries = orders.out / "report" / f".{name}.{orders.owner.token}.claim"
    worker = Worker(orders)
    tries.write_bytes(b"." * (MAX_TRIES - 1))
    assert worker.run(2).result is not None
    tries.write_bytes(b"." * MAX_TRIES)
    outcome = worker.run(2)
    assert outcome.error.code == row_of(orders, 2)["code"] == "worker-died"
    assert not orders.cases[2].output.exists()
    assert left_over(orders) == set()


def test_a_machine_without_the_folder_or_the_models_is_named(orders, tmp_path):
    (tmp_path / "elsewhere" / "report").mkdir(parents=True)
    same_name = replace(orders, out=tmp_path / "elsewhere")
    no_model = replace(orders, models=(tmp_path / "none",))
    other_model = replace(orders, settings=replace(SETTINGS, keep_empty=True))
    for wrong, code, word in (
        (same_name, "fleet-folder", "must see the output folder"),
        (no_model, None, "none"),
        (other_model, "fleet-differs", "same version of sparseg"),
    ):
        outcome = Worker(wrong).run(0)
        assert outcome.unfit
        assert str(outcome.error).startswith(f"host {platform.node()}: ")
        assert word in str(outcome.error)
        assert code in (None, outcome.error.code)
    assert not orders.cases[0].output.exists()


def test_without_ray_the_error_names_the_extra(model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    cases = write_cases(tmp_path / "in", 1)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparseg\[ray\]'"):
        predict_fleet([model_folder], SETTINGS, cases, tmp_path / "out", Notes(), fleet=Fleet(2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--ray", "0"], ["--ray", "2", "--shard", "1/2"]])
def test_a_fleet_of_nobody_or_of_shards_is_refused(model_folder, tmp_path, capsys, more):
    (case,) = write_cases(tmp_path / "in", 1)
    command = ["predict", str(case.image), "--model", str(model_folder), "--out", str(tmp_path / "out")]
    assert run([*command, *more]) == 2
    assert "--ray" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_worker_needs_a_gpu_of_its_own():
    class Ray:
        @staticmethod
        def cluster_resources():
            return {"GPU": 1.0}

    fleet_module._require_gpus(Ray, Fleet(1), "cuda")
    fleet_module._require_gpus(Ray, Fleet(2), "cpu")
    with pytest.raises(ValueError, match="2 workers, 1 GPUs; give --ray 1 or --device cpu"):
        fleet_module._require_gpus(Ray, Fleet(2), "cuda")


def start(folder, *arguments):
    """Run a python program in a folder; workers find the tests' modules."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_workers_do_what_one_process_does(model_folder, tmp_path):
    cases = write_cases(tmp_path / "in", 6)
    cases[2].image.write_bytes(b"broken")
    command = ["-m", "sparseg", "predict", "in", "--model", model_folder, "--device", "cpu", "--no-report"]
    plain = start(tmp_path, *command, "--out", "plain")
    fleet = start(tmp_path, *command, "--out", "out", "--ray", 2)
    assert plain.returncode == fleet.returncode == 1, fleet.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {
        case.output.name for case in cases if case is not cases[2]
    }
    for path in (tmp_path / "plain").glob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "ok", "ok", "ok"]
    assert len([line for line in fleet.stdout.splitlines() if ": out/case_" in line]) == 5
    assert fleet.stderr.count("error: ") == 1
    assert "6 of 6" in fleet.stdout
    left = [path.name for path in (tmp_path / "out" / "report").iterdir() if path.suffix != ".json"]
    assert left == []


_DYING = """
from pathlib import Path
from predict.batch_tools import Notes
from predict.fleet_tools import prepare
from sparseg.predict.fleet import Fleet, predict_fleet
from sparseg.predict.inputs import collect_cases
from sparseg.predict.settings import PredictSettings

notes, out = Notes(), Path("out")
cases = collect_cases([Path("in")], out)
settings = PredictSettings(overlap=0.5)
predict_fleet([Path({model!r})], settings, cases, out, notes, fleet=Fleet(2), prepare=prepare)
print(sorted(notes.events))
"""


@pytest.mark.slow
def test_the_case_of_a_dead_worker_is_tried_once_more(model_folder, tmp_path):
    images = [case.image for case in write_cases(tmp_path / "in", 4)]
    images[1].rename(tmp_path / "in" / "once.nii.gz")
    images[2].rename(tmp_path / "in" / "deadly.nii.gz")
    done = start(tmp_path, "-c", _DYING.format(model=str(model_folder)))
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    good = [("done", name, "") for name in ("case_000", "case_003", "once")]
    assert last == str([*good, ("error", "deadly", "worker-died")])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        f"{name}.nii.gz" for _, name, _ in good
    ]
    row = json.loads((tmp_path / "out" / "report" / "deadly.json").read_text())
    assert (row["status"], row["code"]) == ("error", "worker-died")
    report = json.loads((tmp_path / "out" / "report.json").read_text())["cases"]
    written = {row["case"]: row.get("output_sha256") for row in report}
    for _, name, _ in good:
        data = (tmp_path / "out" / f"{name}.nii.gz").read_bytes()
        assert written[name] == hashlib.sha256(data).hexdigest()
