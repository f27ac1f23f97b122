"""Model cards of peers, told apart from ours by what only they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.small_peers import PEERS, small_peer, window
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import CARD, WEIGHTS, load_model, read_card, save_model
from sparseg.errors import CheckpointError
from sparseg.models.config import SegmenterConfig
from sparseg.models.peer_config import PeerConfig
from sparseg.preprocessing.config import PAPER_ABDOMEN_CT


def card(model: Any) -> ModelCard:
    return ModelCard(
        model=model,
        preprocess=PAPER_ABDOMEN_CT,
        channels=("CT", "PET"),
        labels={0: "background", 1: "liver", 2: "tumor"},
    )


@pytest.mark.parametrize("network", PEERS)
def test_a_peer_comes_back_bit_for_bit(tmp_path: Path, network: str) -> None:
    net = small_peer(network).eval()
    save_model(tmp_path / "model", net, card(net.config))
    again = load_model(tmp_path / "model")
    assert again.config == net.config
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert len(load_file(tmp_path / "model" / WEIGHTS)) == len(state)
    if network != "swin_unetr":
        with torch.inference_mode():
            assert torch.equal(again(window(net)), net(window(net)))


def test_settings_are_told_apart_by_the_name_of_a_network() -> None:
    peer = json.loads(card(small_peer("segresnet").config).model_dump_json())["model"]
    assert isinstance(card(peer).model, PeerConfig)
    ours = SegmenterConfig(in_channels=2, num_classes=3).model_dump(mode="json")
    assert isinstance(card(ours).model, SegmenterConfig)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"depth": 12}, r"model\.peer\.depth: unknown configuration key"),
        ({"network": "unet"}, r"model\.peer\.network"),
        ({"feature_size": 12}, "multiple of 8, got 12"),
        ({"num_classes": 4}, "the network has 4 outputs, the labels need 3"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path: Path, change: dict[str, object], rule: str) -> None:
    net = small_peer("segresnet")
    save_model(tmp_path / "model", net, card(net.config))
    values = json.loads((tmp_path / "model" / CARD).read_text())
    values["model"] |= change
    (tmp_path / "model" / CARD).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rule):
        read_card(tmp_path / "model")


def test_weights_of_another_peer_are_refused(tmp_path: Path) -> None:
    net = small_peer("dynunet")
    save_model(tmp_path / "model", small_peer("segresnet"), card(net.config))
    with pytest.raises(CheckpointError, match="the weights must fit the network exactly"):
        load_model(tmp_path / "model")
