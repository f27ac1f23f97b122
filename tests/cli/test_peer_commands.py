"""A peer goes through the commands by the name of its preset alone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest
import yaml

from training.toy import write_toy_dataset


@pytest.mark.slow
def test_train_info_predict_evaluate_bench(sparseg, tmp_path: Path) -> None:
    data, run, out = write_toy_dataset(tmp_path / "data"), tmp_path / "run", tmp_path / "out"
    few = ("--max-steps", "2", "--set", "batch_size=1")
    outcome = sparseg("train", data, "--out", run, "--preset", "peer_segresnet_tiny", *few)
    assert outcome.code == 0, outcome.err
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["preset"], stored["model"]) == ("peer_segresnet_tiny", {"roi_size": [24, 24, 16]})
    outcome = sparseg("info", run)
    assert outcome.code == 0, outcome.err
    assert "segresnet, width 8" in outcome.out
    assert "1.18 M" in outcome.out
    assert "tokens" not in outcome.out
    images = data / "imagesTr"
    outcome = sparseg("predict", images, "--model", run, "--out", out, "--report")
    assert outcome.code == 0, outcome.err
    assert nib.load(out / "case1.nii.gz").shape == (20, 18, 16)
    outcome = sparseg("evaluate", "--pred", out, "--ref", data / "labelsTr", "--labels", run)
    assert outcome.code == 0, outcome.err
    assert sparseg("model", "verify", run).code == 0
    sparseg("predict", images / "case0.nii.gz", "--model", run, "--out", out, "--keep-ratio", "0.5").refused(
        "dense and keeps all tokens"
    )
    file = tmp_path / "bench.json"
    names = (
        "--variants",
        "sparse",
        "--variants",
        "peer_dynunet_tiny",
        "--modes",
        "inference",
        "--pairs",
        "1",
    )
    outcome = sparseg("bench", "model", "--preset", "test_tiny", "--json", file, *names, "--threads", "1")
    assert outcome.code == 0, outcome.err
    rows = json.loads(file.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["sparse", "peer_dynunet_tiny"]
    assert all(row["peak_memory_bytes"] > 2**27 for row in rows)


def test_a_peer_has_no_encoder_to_pretrain(sparseg, tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "data")
    outcome = sparseg("pretrain", data, "--out", tmp_path / "run", "--preset", "peer_mednext_tiny")
    outcome.refused("a peer", "choose a preset that is no peer")
