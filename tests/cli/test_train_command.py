"""`sparseg train`: what a run leaves, resumption, and what it refuses before it begins."""

from __future__ import annotations

import json
import shlex
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from predict.threshold_model import NAMES
from sparseg.checkpoints.folder import load_model, read_card
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

SHAPE = (14, 12, 13)


def make_dataset(root, names=("a", "b")):
    """Write phantoms in Decathlon layout."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(names):
        image, labels = make_phantom(SHAPE, spacing=(1.5, 1.0, 2.0), seed=seed)
        write_image(root / "imagesTr" / f"{name}.nii.gz", image)
        ids = labels.array[0].astype(np.uint8)
        write_label_map(root / "labelsTr" / f"{name}.nii.gz", ids, labels.affine)
    content = {
        "name": "toy",
        "channel_names": {"0": "CT"},
        "labels": {str(number): name for number, name in NAMES.items()},
        "training": [
            {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names
        ],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "data")


@pytest.fixture
def train(sparseg, dataset, tmp_path):
    """Return `train(options...)` on the dataset into `run`."""

    def command(*options, data=dataset, out=tmp_path / "run"):
        return sparseg("train", data, "--out", out, *options)

    return command


TINY = ("--preset", "test_tiny", "--max-steps", "2", "--set", "batch_size=1")


def log_rows(run, kind):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.mark.slow
def test_a_run_and_its_resumption(train, sparseg, tmp_path, dataset):
    run = tmp_path / "run"
    outcome = train(*TINY, "--seed", "7", "--set", "provenance=phantoms, no patients")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in run.iterdir()} == {
        *("best", "last", "state", "config.yaml", "plan.yaml", "splits.json", "manifest.json"),
        *("log.jsonl", "progress.png"),
    }
    assert "preparing a\npreparing b\n" in outcome.err
    assert "step 2: validation Dice" in outcome.err
    assert outcome.out.startswith("2 steps in ")
    assert f"model in {run / 'best'}\n" in outcome.out
    card = read_card(run)
    assert card.labels == NAMES
    assert card.channels == ("CT",)
    assert card.preprocess.spacing == (1.5, 1.0, 2.0)
    assert (card.provenance.dataset, card.provenance.steps, card.provenance.seed) == ("toy", 2, 7)
    assert card.provenance.note == "phantoms, no patients"
    assert load_model(run).token_counts()[0] == 64
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["preset"], stored["max_steps"], stored["batch_size"]) == ("test_tiny", 2, 1)
    assert [row["step"] for row in log_rows(run, "train")] == [1, 2]
    assert (run / "progress.png").read_bytes().startswith(b"\x89PNG")

    before = load_model(run / "last").state_dict()
    outcome = train("--resume", "--max-steps", "4")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("4 steps in ")
    assert [row["step"] for row in log_rows(run, "train")] == [1, 2, 3, 4]
    assert read_card(run / "last").provenance.steps == 4
    after = load_model(run / "last").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # What it wrote is what the other commands read.
    assert sparseg("info", run).code == 0
    image = dataset / "imagesTr" / "a.nii.gz"
    assert sparseg("predict", image, "--model", run, "--out", tmp_path / "out").code == 0
    labels = nib.load(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_allclose(labels.affine, nib.load(image).affine, atol=1e-6)


def test_a_run_that_patience_ended_is_done_and_can_be_extended(train, tmp_path):
    still = ("--set", "optimizer.lr=1e-12", "--set", "patience=1", "--set", "validate_every=1")
    (tmp_path / "c.yaml").write_text("preset: test_tiny\nbatch_size: 1\nmax_steps: 9\n")
    for options in (("--config", tmp_path / "c.yaml", *still), ("--resume",)):
        outcome = train(*options)
        assert outcome.code == 0, outcome
        assert outcome.out.startswith("2 steps in ")
        assert "ended early: validation no longer improves; for more steps: sparseg train " in outcome.out
        assert outcome.out.endswith(" --resume --extend STEPS\n")
    outcome = train("--resume", "--extend", "1")
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("3 steps in ")


def test_flags_go_before_assignments_and_these_before_the_file(train, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "preset: test_tiny\nseed: 1\nbatch_size: 5\nmax_steps: 9\noverlap: 0.25\n"
    )
    outcome = train(
        *("--config", tmp_path / "c.yaml", "--set", "batch_size=1", "--set", "seed=2"),
        *("--seed", "3", "--max-steps", "1"),
    )
    assert outcome.code == 0, outcome.err
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert {name: stored[name] for name in ("seed", "batch_size", "max_steps", "overlap")} == {
        **{"seed": 3, "batch_size": 1, "max_steps": 1, "overlap": 0.25}
    }


def move_label(dataset):
    file = nib.load(dataset / "labelsTr" / "b.nii.gz")
    affine = file.affine.copy()
    affine[0, 3] += 10
    write_label_map(dataset / "labelsTr" / "b.nii.gz", np.asarray(file.dataobj), affine)


def unlisted_id(dataset):
    file = nib.load(dataset / "labelsTr" / "b.nii.gz")
    ids = np.asarray(file.dataobj).copy()
    ids[0, 0, :3] = 9
    write_label_map(dataset / "labelsTr" / "b.nii.gz", ids, file.affine)


def cut_image(dataset):
    path = dataset / "imagesTr" / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def no_layout(dataset):
    (dataset / "dataset.json").unlink()
    shutil.rmtree(dataset / "labelsTr")


def missing_image(dataset):
    (dataset / "imagesTr" / "b.nii.gz").unlink()


def leave(_dataset):
    pass


def default_options(given):
    pairs = {"--preset": "test_tiny", "--max-steps": "2"}
    return [word for name, value in pairs.items() if name not in given for word in (name, value)]


REFUSALS = {
    "keep ratio 0": (
        leave,
        ["--set", "model.keep_ratio=0"],
        ["keep_ratio", "above 0 and at most 1", "received 0"],
    ),
    "keep ratio above 1": (leave, ["--set", "model.keep_ratio=1.5"], ["keep_ratio", "received 1.5"]),
    "window": (leave, ["--set", "model.roi_size=[16,16,18]"], ["multiple", "18", "4"]),
    "key of --set": (leave, ["--set", "optimizer.lrr=1"], ["optimizer.lrr", "unknown configuration key"]),
    "model key": (leave, ["--set", "model.keep_rato=0.5"], ["keep_rato", "unknown configuration key"]),
    "no assignment": (leave, ["--set", "batch_size"], ["key=value", "received batch_size"]),
    "preset": (leave, ["--preset", "vit_huge"], ["vit_huge", "test_tiny"]),
    "steps": (leave, ["--max-steps", "0"], ["max_steps", "received 0"]),
    "classes": (
        leave,
        ["--set", "model.num_classes=9"],
        ["model.num_classes", "(3)", "received 9", "remove it"],
    ),
    "resume": (leave, ["--resume"], ["config.yaml", "without --resume"]),
    "grids": (move_label, [], ["labelsTr/b.nii.gz", "case b", "10 mm apart", "resample"]),
    "label id": (unlisted_id, [], ["labelsTr/b.nii.gz", "[0, 1, 2]", "received 9 (3 voxels)", "declare"]),
    "cut image": (cut_image, [], ["imagesTr/b.nii.gz", "received"]),
    "no labels": (no_layout, [], ["must have a known layout", "docs/how-to/datasets.md"]),
    "missing image": (missing_image, [], ["is missing", "imagesTr/b.nii.gz", "remove the entry"]),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_refusals_leave_no_run(train, tmp_path, dataset, fault):
    spoil, options, words = REFUSALS[fault]
    spoil(dataset)
    # An option may be given once; the tiny settings are those that this case does not give.
    outcome = train(*([] if "--resume" in options else default_options(options)), *options)
    assert outcome.code == 2, outcome
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_unknown_key_in_a_file(train, tmp_path):
    (tmp_path / "c.yaml").write_text("preset: test_tiny\nlearning_rate: 1\n")
    train("--config", tmp_path / "c.yaml").refused(
        tmp_path / "c.yaml", "learning_rate", "unknown configuration key", "received 1", "docs/"
    )
    (tmp_path / "c.yaml").write_text("preset: [test_tiny\n")
    train("--config", tmp_path / "c.yaml").refused(tmp_path / "c.yaml", "valid YAML", "correct the file")
    train("--config", tmp_path / "none.yaml").refused(tmp_path / "none.yaml", "must exist", "check the path")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run(train, tmp_path):
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "state" / "step_00000007.json").write_bytes(b"another run")
    train(*TINY).refused(run, "already holds a run", "--resume")
    assert [path.name for path in run.rglob("*")] == ["state", "step_00000007.json"]
    assert (run / "state" / "step_00000007.json").read_bytes() == b"another run"


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (["best/model.json", "last/model.json", "manifest.json", "splits.json"], "best, last"),
        (["config.yaml", "splits.json"], "splits.json"),
        (["config.yaml", "splits.json", "fold_0/config.yaml", "fold_1/config.yaml"], "fold_0, fold_1"),
        (["compare.yaml", "splits.json"], "compare.yaml"),
    ],
)
def test_a_folder_that_holds_something_else(train, tmp_path, held, named):
    run = tmp_path / "run"
    for name in held:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("of another")
    before = files(run)
    train(*TINY).refused(run, "needs an empty folder", f"holds {named}", "choose another --out")
    assert files(run) == before


@pytest.mark.parametrize("left", [["config.yaml"], ["config.yaml", "manifest.json", "splits.json"]])
def test_a_start_that_was_cut_off_is_not_in_the_way(train, tmp_path, left):
    run = tmp_path / "run"
    for name in left:
        run.mkdir(exist_ok=True)
        (run / name).write_text("cut off")
    outcome = train("--preset", "test_tiny", "--max-steps", "1", "--set", "batch_size=1")
    assert outcome.code == 0, outcome


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--seed", "1"], "--seed"),
        (["--preset", "test_tiny"], "--preset"),
        (["--set", "batch_size=2"], "--set batch_size=2"),
        (["--config", "c.yaml"], "--config"),
    ],
)
def test_a_resumed_run_keeps_its_settings(train, tmp_path, options, word):
    train("--resume", *options).refused("keeps its settings", word, "start a new run")
    assert not (tmp_path / "run").exists()


def test_the_command_to_go_on_with_can_be_pasted(train, sparseg, dataset, tmp_path):
    data = dataset.rename(tmp_path / "my data")
    cut_image(data)
    out, cache = tmp_path / "run 1", tmp_path / "a cache"
    outcome = train(*TINY, "--until", "1", "--skip-bad", "--cache", cache, data=data, out=out)
    assert outcome.code == 0, outcome
    command = shlex.split(outcome.out.rpartition("go on with: ")[2])
    assert command[:5] == ["sparseg", "train", str(data), "--out", str(out)]
    assert {"--skip-bad", "--cache", str(cache)} <= set(command)
    outcome = sparseg(*command[1:])
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("2 steps in ")


def test_an_extension_that_would_do_nothing_is_refused(train, tmp_path):
    run = tmp_path / "run"
    train(*TINY, "--extend", "3").refused("--extend 3 without --resume", "give --resume too")
    assert not run.exists()
    outcome = train("--preset", "test_tiny", "--max-minutes", "0.0001", "--set", "batch_size=1")
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("1 steps in ")
    train("--resume", "--extend", "3").refused(run, "used up its 0.0001 minutes", "larger --max-minutes")
    train("--resume", "--extend", "3", "--max-steps", "9").refused("exclude each other", "leave one out")
    outcome = train("--resume", "--max-minutes", "9", "--max-steps", "3")
    assert outcome.code == 0, outcome
    outcome = train("--resume", "--max-minutes", "9", "--extend", "1")
    assert outcome.code == 0, outcome
    assert outcome.out.startswith("4 steps in ")


def test_an_output_that_is_a_file(train, tmp_path):
    (tmp_path / "run").write_text("keep")
    outcome = train(*TINY)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert (tmp_path / "run").read_text() == "keep"


def test_l5_one_image_on_both_sides_of_the_split(train, dataset, tmp_path):
    """Row L5: the same voxels under two names, one held out, would make validation look better than it is."""
    image, labels = (dataset / folder for folder in ("imagesTr", "labelsTr"))
    for folder in (image, labels):
        (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes())
    outcome = train(*TINY)
    assert outcome.code == 2
    line = outcome.err.splitlines()[-1]
    words = ("a.nii.gz", "b.nii.gz", "both in training and held out", "remove one")
    assert all(word in line for word in words)
    assert not (tmp_path / "run").exists()


def test_t6_bad_cases_are_left_out_by_name_where_that_is_asked_for(train, dataset, tmp_path, caplog):
    """Row T6: without --skip-bad such a dataset is refused before step 1 (`test_refusals_leave_no_run`)."""
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(dataset / folder / "b.nii.gz", dataset / folder / "c.nii.gz")
    content = json.loads((dataset / "dataset.json").read_text())
    content["training"].append({"image": "imagesTr/c.nii.gz", "label": "labelsTr/c.nii.gz"})
    content["training"].append({"image": "imagesTr/gone.nii.gz", "label": "labelsTr/a.nii.gz"})
    (dataset / "dataset.json").write_text(json.dumps(content))
    cut_image(dataset)
    outcome = train(*TINY, "--skip-bad")
    assert outcome.code == 0, outcome.err
    assert "left out b: compressed data must run to its checksum" in caplog.text
    assert "left out gone: a file that is listed is missing" in caplog.text
    assert read_card(tmp_path / "run").provenance.num_training_cases == 1
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert sorted(name for fold in splits["folds"] for name in fold["val"]) == ["a", "c"]
