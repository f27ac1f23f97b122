"""`sparseg pretrain`: what a run leaves, resumption, and what it refuses before it begins."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from sparseg.checkpoints.init import load_encoder_init
from sparseg.checkpoints.pretrained import read_encoder
from sparseg.models.segmenter import SparseUNETR
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

SHAPE = (14, 12, 13)
TINY = ("--preset", "test_tiny", "--max-steps", "2", "--set", "batch_size=1")


def write_scans(folder, count=2):
    folder.mkdir(parents=True)
    for seed in range(count):
        image, _ = make_phantom(SHAPE, spacing=(1.5, 1.0, 2.0), seed=seed)
        write_image(folder / f"scan{seed}.nii.gz", image)
    return folder


def write_labelled(root):
    """Write two folders, images and labels, of CT phantoms."""
    write_scans(root / "images")
    (root / "labels").mkdir()
    for seed in range(2):
        _, labels = make_phantom(SHAPE, spacing=(1.5, 1.0, 2.0), seed=seed)
        ids = labels.array[0].astype(np.uint8)
        write_label_map(root / "labels" / f"scan{seed}.nii.gz", ids, labels.affine)
    (root / "sparseg.yaml").write_text("name: toy\nchannels: [CT]\n")
    return root


@pytest.fixture
def pretrain(sparseg, tmp_path):
    """Return `pretrain(options...)` on a plain folder of images into `run`."""

    def command(*options, data=None, out=tmp_path / "run"):
        scans = tmp_path / "scans"
        if data is None and not scans.exists():
            write_scans(scans)
        return sparseg("pretrain", data or scans, "--out", out, *options)

    return command


@pytest.mark.slow
def test_a_run_on_a_plain_folder_and_its_resumption(pretrain, tmp_path):
    run = tmp_path / "run"
    outcome = pretrain(*TINY, "--seed", "7", "--mask-ratio", "0.5")
    assert outcome.code == 0, outcome.err
    names = ("encoder.safetensors", "pretrain.json", "config.yaml", "log.jsonl", "state")
    assert {path.name for path in run.iterdir()} == {*names, "progress.png", "reconstruction.png"}
    assert "2 images of images dataset 'scans', labels not used\n" in outcome.err
    assert "no labels to plan with" in outcome.err
    assert "preparing scan0\npreparing scan1\n" in outcome.err
    assert outcome.out.startswith("2 steps in ")
    assert f"encoder in {run}; go on with: sparseg train DATASET --init {run}\n" in outcome.out
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["seed"], stored["autoencoder"]["mask_ratio"], stored["max_steps"]) == (7, 0.5, 2)
    assert stored["preprocess"]["spacing"] == [1.5, 1.0, 2.0]
    for name in ("progress.png", "reconstruction.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")

    _, before = read_encoder(run)
    outcome = pretrain("--resume", "--max-steps", "4")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("4 steps in ")
    card, after = read_encoder(run)
    assert (card.steps, card.num_cases, card.seed) == (4, 2, 7)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    net = SparseUNETR(**card.model.model_dump())
    assert len(load_encoder_init(net, run).matched) == len(after)


@pytest.mark.slow
def test_a_labelled_dataset_is_prepared_as_training_would(pretrain, sparseg, tmp_path):
    data = write_labelled(tmp_path / "data")
    outcome = pretrain(*TINY, data=data)
    assert outcome.code == 0, outcome.err
    assert "no labels to plan with" not in outcome.err
    assert sparseg("plan", data, "--out", tmp_path / "plan.yaml", "--no-measure").code == 0
    plan = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    card, _ = read_encoder(tmp_path / "run")
    assert card.channels == ("CT",)
    assert list(card.preprocess.intensity.clip) == plan["preprocess"]["intensity"]["clip"]
    assert list(card.preprocess.spacing) == plan["preprocess"]["spacing"]
    # The plan itself may be handed over; its own length and augmentation are those of the training.
    out = tmp_path / "other"
    outcome = pretrain("--config", tmp_path / "plan.yaml", *TINY, data=data, out=out)
    assert outcome.code == 0, outcome.err
    assert read_encoder(out)[0].preprocess == card.preprocess


REFUSALS = {
    "share": (["--mask-ratio", "1.5"], ["autoencoder.mask_ratio", "received 1.5"]),
    "key": (["--set", "autoencoder.maskratio=0.5"], ["maskratio", "unknown configuration key"]),
    "preset": (["--preset", "vit_huge"], ["vit_huge", "test_tiny"]),
    "steps": (["--max-steps", "0"], ["max_steps", "received 0"]),
    "channels": (["--set", "model.in_channels=2"], ["model.in_channels", "(1)", "received 2"]),
    "resume": (["--resume"], ["config.yaml", "without --resume"]),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_refusals_leave_no_run(pretrain, tmp_path, fault):
    options, words = REFUSALS[fault]
    outcome = pretrain(*options)
    assert outcome.code == 2, outcome
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_settings(pretrain, tmp_path):
    for options, word in (
        (["--seed", "1"], "--seed"),
        (["--mask-ratio", "0.5"], "--mask-ratio"),
        (["--set", "batch_size=2"], "--set batch_size=2"),
    ):
        pretrain("--resume", *options).refused("keeps its settings", word, "start a new run")
    assert not (tmp_path / "run").exists()
