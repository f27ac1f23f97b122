"""Peers go the way of every other model: train, resume, store, verify, predict, describe."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from models.small_peers import PEERS, small_peer
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import load_model, read_card, save_model
from sparseg.checkpoints.init import load_encoder_init
from sparseg.checkpoints.verify import verify_model
from sparseg.errors import CheckpointError, ConfigError
from sparseg.models.peers import PeerNet
from sparseg.models.presets import PRESETS, preset
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.predictor import Predictor
from sparseg.predict.settings import PredictSettings
from sparseg.training import log
from training.toy import CT, Watcher, run_toy

PRESET_OF = {
    PRESETS[name]["network"]: name for name in PRESETS if name.startswith("peer_") and name.endswith("_tiny")
}
NETWORKS = [pytest.param(name, marks=pytest.mark.slow) if name == "swin_unetr" else name for name in PEERS]


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("network", NETWORKS)
def test_two_steps_then_a_file(dataset: Path, tmp_path: Path, network: str) -> None:
    watcher = Watcher()
    run, _ = run_toy(
        dataset,
        tmp_path / "run",
        watcher,
        preset=PRESET_OF[network],
        model=PEERS[network],
        max_steps=2,
        validate_every=2,
        ema_decay=0.5,
        activation_checkpointing=network == "dynunet",
        batch_size=1,
    )
    assert len(watcher.losses) == 2
    assert all(math.isfinite(loss) for loss in watcher.losses)
    model = tmp_path / "run" / "last"
    net, card = load_model(model), read_card(model)
    assert isinstance(net, PeerNet)
    assert card.model == run.model_config == net.config
    assert all(
        torch.equal(value, run.best_weights.state_dict()[name]) for name, value in net.state_dict().items()
    )
    rows = [row for row in log.read(tmp_path / "run") if row["kind"] == "train"]
    assert not any(name.startswith("kept") for row in rows for name in row)
    assert [check.status for check in verify_model(model)] == ["pass"] * 6
    image = dataset / "imagesTr" / "case0.nii.gz"
    predictor = Predictor.from_folder(model, PredictSettings(previews=True, device="cpu"))
    result = predictor.predict_file(image, tmp_path / "labels.nii.gz")
    labels = nib.load(tmp_path / "labels.nii.gz")
    assert labels.shape == (20, 18, 16)
    assert set(np.unique(np.asarray(labels.dataobj))) <= {0, 1, 2}
    assert predictor.token_counts() == ([2] if network == "unetr16" else [])
    # The network's time is all in one part; tokens that were never scored make no picture.
    assert result.seconds["decode"] > 0 == result.seconds["encode"] == result.seconds["assemble"]
    assert "tokens" not in result.previews
    with pytest.raises(ConfigError, match="dense and keeps all tokens"):
        Predictor(net, card, PredictSettings(keep_ratios=(0.5,), device="cpu"))


@pytest.mark.usefixtures("no_figure")
def test_a_resumed_run_is_the_uninterrupted_one(dataset: Path, tmp_path: Path) -> None:
    options = {"preset": "peer_dynunet_tiny", "model": PEERS["dynunet"], "max_steps": 4, "validate_every": 4}
    whole, _ = run_toy(dataset, tmp_path / "whole", **options)
    run_toy(dataset, tmp_path / "cut", until=2, **options)
    resumed, _ = run_toy(dataset, tmp_path / "cut", resume=True, **options)
    expected = whole.plain_net.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.plain_net.state_dict().items())


def test_what_only_our_networks_have_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown configuration key.*received 8"):
        run_toy(dataset, tmp_path / "a", preset="peer_segresnet_tiny", model={"patch_size": 8})
    net = small_peer("segresnet", in_channels=1)
    card = ModelCard(
        model=net.config, preprocess=CT, channels=("CT",), labels={0: "background", 1: "liver", 2: "tumor"}
    )
    save_model(tmp_path / "peer", net, card)
    ours = SparseUNETR(**preset("test_tiny"))
    for start, source in ((ours, tmp_path / "peer"), (net, tmp_path)):
        with pytest.raises(CheckpointError, match=r"an encoder to start from.*received a PeerNet"):
            load_encoder_init(start, source)
