"""Starting from an encoder that has learnt before: what is taken, resized, dropped and left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference.published_state import make_published_state_dict, make_selfmedmae_state_dict, wrap
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import save_model
from sparseg.checkpoints.init import load_encoder_init
from sparseg.checkpoints.pretrained import CARD, ENCODER, PretrainCard, read_encoder, save_encoder
from sparseg.errors import CheckpointError, NumericsError
from sparseg.models.autoencoder import AutoencoderConfig, MaskedAutoencoder
from sparseg.models.config import SegmenterConfig
from sparseg.models.segmenter import SparseUNETR
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig

SIZES: dict[str, Any] = {
    "roi_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 4, "feature_size": 2,
    "num_classes": 2, "pruning_stages": (1, 2, 3), "keep_ratio": 0.5,
}  # fmt: skip
CT = PreprocessConfig(intensity=CTIntensity())


def network(seed: int = 0, **changes: Any) -> SparseUNETR:
    torch.manual_seed(seed)
    return SparseUNETR(**{**SIZES, **changes})


def randomize(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def state(net: SparseUNETR) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def pretrained(folder: Path, **changes: Any) -> MaskedAutoencoder:
    folder.mkdir(parents=True, exist_ok=True)
    config = SegmenterConfig(**{**SIZES, **changes})
    net = MaskedAutoencoder(config)
    randomize(net, 3)
    card = PretrainCard(
        model=config, autoencoder=AutoencoderConfig(), preprocess=CT, channels=("CT",), steps=7
    )
    save_encoder(folder, net.encoder, card)
    return net


def is_outside(name: str) -> bool:
    return not name.startswith("encoder.") or ".prunings." in name


def test_a_pretraining_carries_over_one_to_one(tmp_path: Path) -> None:
    source = pretrained(tmp_path / "run")
    net = network(1)
    before = state(net)
    report = load_encoder_init(net, tmp_path / "run")
    after = state(net)
    for name, value in source.encoder.state_dict().items():
        assert torch.equal(after[f"encoder.{name}"], value), name
    for name, value in before.items():
        if is_outside(name):
            assert torch.equal(after[name], value), name
    assert set(report.matched) == {f"encoder.{name}" for name in source.encoder.state_dict()}
    assert report.resized == report.dropped == ()
    assert {name for name, _ in report.kept} == {name for name in before if ".prunings." in name}
    assert dict(report.left) == {
        part: sum(name.startswith(f"{part}.") for name in before) for part in ("assembler", "decoder")
    }
    text = report.describe()
    assert text.startswith(f"encoder from a pre-training: {len(report.matched)} tensors as they are\n")
    assert "belongs to token pruning" in text
    assert "starting fresh: assembler (" in text


def test_the_network_then_computes_what_was_pretrained(tmp_path: Path) -> None:
    source = pretrained(tmp_path).eval()
    net = network(1, pruning_stages=(), skips="per_depth").eval()
    load_encoder_init(net, tmp_path)
    x = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        survivors, token = net.encoder.normed_survivors(net.encoder(x))
        assert token is not None
        expected = source.encode(x, torch.arange(64)[None])
    torch.testing.assert_close(torch.cat((token, survivors.tokens), dim=1), expected)


def test_the_position_table_is_resized_to_another_window(tmp_path: Path) -> None:
    source = pretrained(tmp_path, roi_size=(32, 32, 16))
    net = network(1)
    report = load_encoder_init(net, tmp_path)
    assert report.resized == ("encoder.pos_embed: grid (4, 4, 2) -> (4, 4, 4)",)
    table = source.encoder.pos_embed
    assert torch.equal(net.encoder.pos_embed[:, :1], table[:, :1])
    # Trilinear from 2 to 4 along the last axis: the outer values are those of the ends.
    ends = net.encoder.pos_embed[0, 1:].reshape(4, 4, 4, 24)[:, :, [0, 3]]
    torch.testing.assert_close(ends, table[0, 1:].reshape(4, 4, 2, 24))
    assert "resized encoder.pos_embed" in report.describe()


@pytest.mark.parametrize("changes", [{"in_channels": 2}, {"patch_size": 16, "roi_size": 64}])
def test_a_patch_embedding_of_other_images_is_dropped_with_its_reason(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    pretrained(tmp_path)
    net = network(1, **changes)
    before = state(net)
    report = load_encoder_init(net, tmp_path)
    names = {"encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"}
    assert {name for name, _ in report.dropped} == names
    assert all("channels or patch size differ" in why for _, why in report.dropped)
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in names)


@pytest.mark.parametrize("source", [True, False])
def test_class_tokens_may_be_on_one_side_only(tmp_path: Path, source: bool) -> None:
    trained = pretrained(tmp_path, class_token=source)
    net = network(1, class_token=not source)
    before = state(net)
    report = load_encoder_init(net, tmp_path)
    table = trained.encoder.pos_embed[:, int(source) :]
    assert torch.equal(net.encoder.pos_embed[:, int(not source) :], table)
    if source:
        assert dict(report.dropped) == {"encoder.cls_token": "the network has no class token"}
    else:
        assert torch.equal(net.state_dict()["encoder.cls_token"], before["encoder.cls_token"])
        assert "encoder.cls_token" in dict(report.kept)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 32}, "wrong shape: encoder"),
        ({"depth": 5}, "missing: encoder.blocks.4"),
        ({"depth": 3, "pruning_stages": (1, 2)}, "unknown: encoder.blocks.3"),
        ({"qkv_bias": False}, "unknown: encoder.blocks.0.attn.qkv.bias"),
    ],
)
def test_another_width_or_depth_is_refused_and_nothing_changes(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    pretrained(tmp_path)
    net = network(1, **changes)
    before = state(net)
    with pytest.raises(CheckpointError, match="exactly those of the model") as caught:
        load_encoder_init(net, tmp_path)
    assert words in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_trained_model_gives_its_encoder(tmp_path: Path) -> None:
    trained = network(5)
    randomize(trained, 6)
    card = ModelCard(model=trained.config, preprocess=CT, channels=("CT",), labels={0: "background", 1: "a"})
    save_model(tmp_path / "run" / "best", trained, card)
    net = network(1, num_classes=5)
    before = state(net)
    report = load_encoder_init(net, tmp_path / "run")
    for name, value in state(net).items():
        assert torch.equal(value, before[name] if is_outside(name) else state(trained)[name]), name
    assert report.source == "trained model"
    reasons = {why for _, why in report.dropped}
    assert reasons == {"score predictor, belongs to the task", "not part of the encoder"}
    assert {name for name, _ in report.dropped} == {name for name in state(trained) if is_outside(name)}


def monai_encoder(prefix: str) -> dict[str, Tensor]:
    from monai.networks.nets.vit import ViT

    torch.manual_seed(8)
    vit = ViT(1, 32, 8, hidden_size=24, mlp_dim=96, num_layers=4, num_heads=4, qkv_bias=True)
    return {f"{prefix}{name}": value for name, value in vit.state_dict().items()}


FOREIGN: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "SelfMedMAE checkpoint": (lambda: make_selfmedmae_state_dict(1), "encoder.blocks.2.mlp.fc1.weight"),
    "published checkpoint": (lambda: make_published_state_dict(2), "encoder.blocks.2.mlp.fc1.weight"),
    "MONAI encoder": (lambda: monai_encoder(""), "blocks.2.mlp.linear1.weight"),
    "MONAI UNETR": (
        lambda: {**monai_encoder("vit."), "out.conv.conv.bias": torch.zeros(2)},
        "vit.blocks.2.mlp.linear1.weight",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_recognised(tmp_path: Path, kind: str) -> None:
    make, name = FOREIGN[kind]
    foreign = make()
    torch.save(wrap(foreign), tmp_path / "a.pt")
    net = network(1)
    before = state(net)
    report = load_encoder_init(net, tmp_path / "a.pt")
    assert report.source == kind
    assert torch.equal(net.state_dict()["encoder.blocks.2.mlp.fc1.weight"], foreign[name])
    assert all(torch.equal(value, before[key]) for key, value in state(net).items() if is_outside(key))
    left_out = {key for key, _ in report.dropped}
    assert len(report.matched) + len(report.resized) + len(left_out) == len(foreign)


def test_the_published_class_token_keeps_its_row(tmp_path: Path) -> None:
    foreign = make_published_state_dict(2)
    torch.save(foreign, tmp_path / "a.pt")
    net = network(1)
    load_encoder_init(net, tmp_path / "a.pt")
    assert torch.equal(net.encoder.pos_embed, foreign["encoder.pos_embed"])


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    pretrained(tmp_path / "run")
    net = network()
    for name, words in {
        "a.pt": "names such as layer.weight",
        "b.pt": "readable as plain tensors",
        "c.pt": "must exist",
        "empty": "neither here nor in best/ or last/",
        f"run/{ENCODER}": "give the folder that holds the file",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            load_encoder_init(net, tmp_path / name)
        assert words in str(caught.value)


def test_unknown_tensors_are_refused(tmp_path: Path) -> None:
    foreign = make_published_state_dict(2) | {"encoder.extra.weight": torch.zeros(1)}
    torch.save(foreign, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"unknown: encoder\.extra\.weight"):
        load_encoder_init(network(), tmp_path / "a.pt")


def test_damaged_weights_and_cards_are_refused(tmp_path: Path) -> None:
    pretrained(tmp_path)
    content = (tmp_path / ENCODER).read_bytes()
    (tmp_path / ENCODER).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"SHA-256.*another hash"):
        load_encoder_init(network(), tmp_path)
    (tmp_path / ENCODER).unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_encoder_init(network(), tmp_path)
    (tmp_path / CARD).write_text("{")
    with pytest.raises(CheckpointError, match="complete and valid"):
        load_encoder_init(network(), tmp_path)


def test_a_save_cut_off_between_its_renames_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained(tmp_path)
    old = (tmp_path / ENCODER).read_bytes()
    net = MaskedAutoencoder(SegmenterConfig(**SIZES))
    randomize(net, 9)
    card, _ = read_encoder(tmp_path)
    real = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if Path(target).name == ENCODER:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            save_encoder(tmp_path, net.encoder, card.model_copy(update={"steps": 8}))
    assert (tmp_path / ENCODER).read_bytes() == old
    found, tensors = read_encoder(tmp_path)
    assert found.steps == 8
    assert torch.equal(tensors["norm.weight"], net.encoder.norm.weight)


def test_weights_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    net = MaskedAutoencoder(SegmenterConfig(**SIZES))
    with torch.no_grad():
        net.encoder.norm.weight[0] = float("nan")
    card = PretrainCard(model=net.config, autoencoder=net.settings, preprocess=CT, channels=("CT",))
    with pytest.raises(NumericsError, match=r"norm\.weight"):
        save_encoder(tmp_path, net.encoder, card)
    assert list(tmp_path.iterdir()) == []
