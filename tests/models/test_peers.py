"""MONAI's networks behind our interface: the same logits, and clear refusals."""

from __future__ import annotations

from copy import deepcopy
from typing import Any
from unittest import mock

import pytest
import torch
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR
from monai.networks.nets.mednext import MedNeXt
from torch import nn
from torch.nn import functional as F

from sparseg.errors import ConfigError, ShapeError
from sparseg.models.build import build_segmenter, segmenter_from_config
from sparseg.models.peers import PeerNet
from sparseg.training.optimizer import layer_number

from .small_peers import PEERS, small_peer, window

# A window of 64 x 32 x 32 is the smallest of SwinUNETR that trains, and takes seconds.
TRAINED = [pytest.param(name, marks=pytest.mark.slow) if name == "swin_unetr" else name for name in PEERS]


def bare(network: str) -> nn.Module:
    """The same network by MONAI's own constructor, other weights."""
    sizes = {"in_channels": 2, "out_channels": 3}
    torch.manual_seed(9)
    if network == "unetr16":
        return UNETR(**sizes, img_size=(32, 16, 16), feature_size=2, hidden_size=24, mlp_dim=96, num_heads=2)
    if network == "swin_unetr":
        return SwinUNETR(**sizes, feature_size=12)
    if network == "segresnet":
        return SegResNet(**sizes, init_filters=8, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    if network == "dynunet":
        return DynUNet(3, 2, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[2, 4, 8])
    return MedNeXt(**sizes, init_filters=2, kernel_size=3, use_residual_connection=True)


@pytest.mark.parametrize("network", PEERS)
def test_logits_are_those_of_the_bare_network_with_the_same_weights(network: str) -> None:
    net, other = small_peer(network).eval(), bare(network).eval()
    own = {name.removeprefix("net."): value for name, value in net.state_dict().items()}
    found = other.load_state_dict(own, strict=False)
    assert found.unexpected_keys == []
    # What is left out is never run, or is there under another name: MONAI's own weights are other ones.
    assert all(
        "norm_cross_attn" in name
        or name.startswith(("input_block", "downsamples", "upsamples", "bottleneck"))
        for name in found.missing_keys
    )
    image = window(net)
    with torch.inference_mode():
        logits, expected = net(image), other(image)
    assert logits.shape == (1, 3, *net.config.roi_size)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("network", TRAINED)
def test_every_weight_is_trained_and_stored_once(network: str) -> None:
    net = small_peer(network).train()
    net(window(net)).square().mean().backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None] == []
    parameters = [value.data_ptr() for value in net.state_dict().values()]
    assert len(parameters) == len(set(parameters))


@pytest.mark.parametrize("network", TRAINED)
def test_activation_checkpointing_changes_no_gradient(network: str) -> None:
    net = small_peer(network).train()
    again = deepcopy(net)
    again.set_activation_checkpointing(True)
    saved = []
    for one in (net, again):
        count = 0

        def remember(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = one(window(net)).square().mean()
        loss.backward()
        saved.append(count)
    assert saved[1] < 0.8 * saved[0]
    for (name, first), second in zip(net.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad), name
    assert all("forward" not in vars(part) for part in again.modules())


def test_blocks_do_not_lie_in_each_other() -> None:
    for network in PEERS:
        blocks = small_peer(network).blocks()
        inner = {id(part) for block in blocks for part in list(block.modules())[1:]}
        assert blocks
        assert not inner & {id(block) for block in blocks}


def test_attention_is_fused_where_monai_has_a_fused_kernel() -> None:
    for network, calls in (("unetr16", 12), ("swin_unetr", 8)):
        net = small_peer(network).eval()
        fused = mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention)
        with fused as attention, torch.inference_mode():
            net(window(net))
        assert attention.call_count == calls


def test_token_counts_are_those_of_patch_16_or_none() -> None:
    assert small_peer("unetr16").token_counts() == [2]
    assert build_segmenter("peer_unetr16_tiny").token_counts((32, 32, 48)) == [12]
    assert small_peer("segresnet").token_counts() == []


def test_presets_have_the_sizes_of_their_papers() -> None:
    millions = {
        "peer_unetr16": 92.8,
        "peer_swin_unetr": 62.2,
        "peer_segresnet": 18.8,
        "peer_dynunet": 31.2,
        "peer_mednext": 5.6,
        "peer_unetr16_tiny": 7.0,
        "peer_swin_unetr_tiny": 4.1,
        "peer_segresnet_tiny": 1.2,
        "peer_dynunet_tiny": 0.35,
        "peer_mednext_tiny": 0.37,
    }
    for name, expected in millions.items():
        with torch.device("meta"):
            net = build_segmenter(name)
        assert sum(weight.numel() for weight in net.parameters()) / 1e6 == pytest.approx(expected, rel=0.02)


def test_a_peer_is_built_again_from_its_settings() -> None:
    net = small_peer("dynunet", num_levels=4)
    again = segmenter_from_config(net.config)
    assert isinstance(again, PeerNet)
    assert again.config == net.config
    assert [value.shape for value in again.parameters()] == [value.shape for value in net.parameters()]


def test_layer_decay_counts_the_blocks_of_the_transformer() -> None:
    depth = small_peer("unetr16").config.depth
    assert layer_number("net.vit.patch_embedding.position_embeddings", depth, ()) == 0
    assert layer_number("net.vit.blocks.3.mlp.linear1.weight", depth, ()) == 4
    assert layer_number("net.decoder5.transp_conv.conv.weight", depth, ()) == 13
    assert layer_number("net.swinViT.layers1.0.blocks.0.norm1.weight", 0, ()) == 1


@pytest.mark.parametrize(
    ("network", "changes", "rule"),
    [
        ("swin_unetr", {"roi_size": 48}, "roi_size of swin_unetr must be multiples of 32"),
        ("swin_unetr", {"roi_size": 32}, "above 32 along one axis"),
        ("swin_unetr", {"feature_size": 16}, "multiple of 12, got 16"),
        ("segresnet", {"feature_size": 12}, "multiple of 8, got 12"),
        ("segresnet", {"drop_path": 0.1}, "drop_path is a setting of swin_unetr, not of segresnet"),
        ("dynunet", {"num_levels": None}, "dynunet needs num_levels"),
        ("dynunet", {"num_levels": 5}, "above 16 along one axis"),
        ("mednext_s", {"roi_size": (24, 32, 32)}, "multiples of 16"),
        ("unetr16", {"num_heads": 5}, "the width 24 must be a multiple of the number of heads 5"),
        ("unetr16", {"patch_size": 8}, "unknown configuration key"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(network: str, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        small_peer(network, **changes)


@pytest.mark.parametrize(
    ("network", "shape", "rule"),
    [
        ("unetr16", (1, 2, 32, 32, 32), r"windows of unetr16 must be \(32, 16, 16\)"),
        ("segresnet", (1, 2, 16, 16, 12), "have edges that are multiples of 8; received"),
        ("segresnet", (1, 1, 16, 16, 16), r"the network takes \[B, 2, H, W, D\]"),
    ],
)
def test_windows_that_do_not_fit_are_refused(network: str, shape: tuple[int, ...], rule: str) -> None:
    with pytest.raises(ShapeError, match=rule):
        small_peer(network)(torch.zeros(shape))


def test_other_windows_than_the_roi_run_where_no_table_forbids_it() -> None:
    assert small_peer("segresnet").eval()(torch.zeros(1, 2, 8, 16, 24)).shape == (1, 3, 8, 16, 24)
