"""MONAI's UNETR keeps its logits through conversion and survives the way back; its encoders can be reused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vit import ViT
from monai.networks.nets.vitautoenc import ViTAutoEnc
from torch import Tensor, nn

from sparseg.checkpoints.adapters import from_monai_unetr, load_monai_encoder, to_monai_unetr_state_dict
from sparseg.errors import CheckpointError
from sparseg.models.segmenter import SparseUNETR

pytestmark = pytest.mark.parity


def unetr(seed: int = 0, **changes: Any) -> UNETR:
    torch.manual_seed(seed)
    sizes = {"in_channels": 2, "out_channels": 3, "img_size": 32, "feature_size": 2}
    sizes |= {"hidden_size": 24, "mlp_dim": 60, "num_heads": 4}
    return stirred(UNETR(**{**sizes, **changes}))


def stirred(net: nn.Module) -> nn.Module:
    """Give every parameter that starts as zero or one a value of its own, unused norms excepted."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1 and "cross_attn" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return net.eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": True, "in_channels": 1},
        {"proj_type": "perceptron"},
        {"img_size": (48, 32, 32), "feature_size": 3},
        {"norm_name": ("instance", {"affine": False}), "hidden_size": 30, "mlp_dim": 50, "num_heads": 3},
    ],
)
def test_converted_unetr_gives_the_same_logits(changes: dict[str, Any]) -> None:
    source = unetr(**changes)
    net = from_monai_unetr(source)
    size = changes.get("img_size", 32)
    x = image(2, changes.get("in_channels", 2), *(size if isinstance(size, tuple) else (size,) * 3))
    with torch.no_grad():
        expected = source.double()(x.double())
        assert (net(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (net.double()(x.double()) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "img_size": (32, 48, 32)}])
def test_the_way_back_is_exact(changes: dict[str, Any]) -> None:
    source = unetr(2, **changes)
    back = to_monai_unetr_state_dict(from_monai_unetr(source))
    original = source.state_dict()
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) for key in original)
    twin = unetr(3, **changes)
    twin.load_state_dict(back)
    x = image(1, 2, *(changes.get("img_size") or (32,) * 3))
    with torch.no_grad():
        assert torch.equal(twin(x), source(x))


def test_the_conversion_copies() -> None:
    source = unetr()
    net = from_monai_unetr(source)
    back = to_monai_unetr_state_dict(net)
    kept = net.encoder.norm.weight.clone()
    with torch.no_grad():
        source.vit.norm.weight.zero_()
        back["vit.norm.weight"].fill_(7)
    assert torch.equal(net.encoder.norm.weight, kept)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_name": "batch"},
        {"norm_name": ("instance", {"affine": True})},
        {"norm_name": ("instance", {"eps": 1e-3})},
        {"norm_name": ("group", {"num_groups": 1, "affine": False})},
        {"res_block": False},
        {"conv_block": False},
    ],
)
def test_options_without_a_counterpart_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="monai UNETR"):
        from_monai_unetr(unetr(**changes))


def test_other_modules_are_refused() -> None:
    with pytest.raises(CheckpointError, match="must be MONAI's UNETR in 3-D; received Linear"):
        from_monai_unetr(nn.Linear(2, 2))
    flat = unetr(spatial_dims=2, img_size=(32, 32))
    with pytest.raises(CheckpointError, match="in 3-D"):
        from_monai_unetr(flat)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"pruning_stages": (3, 6, 9)}, "no pruning stages"),
        ({"class_token": True}, "no class token"),
        ({"patch_size": 8}, "patch size 16"),
        ({"depth": 8}, "depth 12"),
        ({"skips": "shared"}, "per-depth skips"),
    ],
)
def test_networks_that_monai_lacks_are_not_written(changes: dict[str, Any], rule: str) -> None:
    sizes = {
        "roi_size": 32,
        "patch_size": 16,
        "embed_dim": 24,
        "depth": 12,
        "num_heads": 4,
        "feature_size": 2,
    }
    sizes |= {"pruning_stages": (), "class_token": False}
    net = SparseUNETR(**{**sizes, **changes})
    with pytest.raises(CheckpointError, match=rule):
        to_monai_unetr_state_dict(net)


VIT = {"in_channels": 1, "img_size": 32, "patch_size": 16, "hidden_size": 24, "mlp_dim": 48}
VIT |= {"num_layers": 3, "num_heads": 4}


def network(**changes: Any) -> SparseUNETR:
    sizes = {"roi_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 4, "feature_size": 2}
    sizes |= {"pruning_stages": (), "mlp_ratio": 2.0, "norm_eps": 1e-5, "num_classes": 2}
    torch.manual_seed(5)
    return SparseUNETR(**{**sizes, **changes}).eval()


def final_tokens(net: SparseUNETR, x: Tensor) -> Tensor:
    survivors, class_token = net.encoder.normed_survivors(net.encoder(x))
    return survivors.tokens if class_token is None else torch.cat((class_token, survivors.tokens), dim=1)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_vit_weights_give_vit_features(qkv_bias: bool, proj_type: str) -> None:
    torch.manual_seed(6)
    source = stirred(ViT(**VIT, proj_type=proj_type, qkv_bias=qkv_bias))
    net = network(class_token=False)
    report = load_monai_encoder(net, {f"module.{key}": value for key, value in source.state_dict().items()})
    x = image(1, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(final_tokens(net, x), source(x)[0], rtol=0, atol=1e-5)
    zeroed = {key for key, why in report.kept if why == "set to zero, the checkpoint has none"}
    assert zeroed == (set() if qkv_bias else {f"encoder.blocks.{i}.attn.qkv.bias" for i in range(3)})


def test_autoencoder_weights_give_its_hidden_states() -> None:
    torch.manual_seed(7)
    source = stirred(ViTAutoEnc(**VIT))
    net = network(class_token=False, qkv_bias=False)
    report = load_monai_encoder(net, source.state_dict())
    x = image(1, 1, 32, 32, 32)
    with torch.no_grad():
        last = net.encoder(x).stages[-1].tokens
        torch.testing.assert_close(last, source(x)[1][-1], rtol=0, atol=1e-5)
    heads = {key for key, why in report.dropped if why == "auto-encoder head"}
    assert heads == {
        f"{name}.{part}" for name in ("conv3d_transpose", "conv3d_transpose_1") for part in ("weight", "bias")
    }


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_masked_autoencoder_weights_give_its_encoding() -> None:
    """Without its mask, MONAI's encoder is a plain transformer with a class token."""
    torch.manual_seed(8)
    decoder = {"decoder_hidden_size": 12, "decoder_num_heads": 2, "decoder_num_layers": 1}
    source = stirred(MaskedAutoEncoderViT(**VIT, **decoder, qkv_bias=True))
    net = network()
    report = load_monai_encoder(net, {"state_dict": source.state_dict()})
    x = image(1, 1, 32, 32, 32)
    with torch.no_grad():
        tokens = torch.cat((source.cls_token, source.patch_embedding(x)), dim=1)
        torch.testing.assert_close(final_tokens(net, x), source.blocks(tokens), rtol=0, atol=1e-5)
    assert "cls_token" in report.matched
    assert dict(report.dropped)["mask_tokens"] == "pre-training mask token"
    assert report.kept == ()


def test_a_class_token_that_monai_lacks_stays_and_the_table_is_resized() -> None:
    source = ViT(**VIT, qkv_bias=True)
    net = network(roi_size=(64, 32, 32))
    before = net.encoder.cls_token.clone()
    report = load_monai_encoder(net, source.state_dict())
    assert torch.equal(net.encoder.cls_token, before)
    assert dict(report.kept) == {"encoder.cls_token": "left as it was, the checkpoint has none"}
    assert report.resized == ("patch_embedding.position_embeddings: grid (2, 2, 2) -> (4, 2, 2)",)


def test_older_checkpoints_may_carry_cross_attention() -> None:
    state = ViT(**VIT, qkv_bias=True).state_dict() | {"blocks.0.cross_attn.to_q.weight": torch.zeros(24, 24)}
    report = load_monai_encoder(network(class_token=False), state)
    assert "older MONAI" in dict(report.dropped)["blocks.0.cross_attn.to_q.weight"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blocks.1.norm2.weight", None, "missing: encoder.blocks.1.norm2.weight"),
        ("blocks.1.attn.qkv.bias", None, "missing: encoder.blocks.1.attn.qkv.bias"),
        ("blocks.0.ls.gamma", torch.ones(24), "unknown: blocks.0.ls.gamma"),
        ("norm.weight", torch.ones(7), r"norm.weight \(7,\) instead of \(24,\)"),
    ],
)
def test_monai_encoders_are_read_strictly(key: str, value: Tensor | None, message: str) -> None:
    state = ViT(**VIT, qkv_bias=True).state_dict()
    state.pop(key, None)
    if value is not None:
        state[key] = value
    with pytest.raises(CheckpointError, match=message):
        load_monai_encoder(network(class_token=False), state)
