"""Pre-trained encoders: what is taken, resized, dropped and left, in the weights and in the report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reference.published_state import make_selfmedmae_state_dict, sine_cosine_table, wrap
from sparseg.checkpoints.adapters import AdapterReport, load_selfmedmae_encoder
from sparseg.errors import CheckpointError
from sparseg.models.segmenter import SparseUNETR


def network(**changes: Any) -> SparseUNETR:
    torch.manual_seed(0)
    sizes = {"roi_size": 32, "embed_dim": 24, "depth": 4, "num_heads": 4, "feature_size": 2}
    sizes |= {"num_classes": 2, "pruning_stages": (1, 2, 3), "keep_ratio": 0.5}
    return SparseUNETR(**{**sizes, **changes})


def encoder_of(net: SparseUNETR) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.encoder.state_dict().items()}


def test_a_fitting_encoder_is_taken_whole_and_nothing_else_changes() -> None:
    net = network()
    outside = {
        key: value.clone() for key, value in net.state_dict().items() if not key.startswith("encoder.")
    }
    before = encoder_of(net)
    state = make_selfmedmae_state_dict(1)
    report = load_selfmedmae_encoder(net, wrap(state))
    after = encoder_of(net)
    for key, value in after.items():
        if key.startswith("prunings."):
            assert torch.equal(value, before[key])
        elif key != "pos_embed":
            assert torch.equal(value, state[f"encoder.{key}"])
    assert torch.equal(after["pos_embed"][0, 0], torch.zeros(24))
    assert torch.equal(after["pos_embed"][:, 1:], state["encoder_pos_embed"])
    assert all(torch.equal(net.state_dict()[key], value) for key, value in outside.items())
    assert set(report.matched) == {key for key in state if key.startswith("encoder.")} | {"encoder_pos_embed"}
    assert report.resized == ()
    assert {key for key, _ in report.dropped} == set(state) - set(report.matched)
    assert {key for key, _ in report.kept} == {f"encoder.{key}" for key in after if "prunings" in key}


def test_the_loaded_encoder_computes_with_the_weights() -> None:
    """Two networks that start apart agree once both hold the same encoder."""
    first, second = network(pruning_stages=()), network(pruning_stages=())
    torch.nn.init.normal_(second.encoder.cls_token)
    x = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(first(x), second(x))
        for net in (first, second):
            load_selfmedmae_encoder(net, make_selfmedmae_state_dict(2))
        assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("changes", [{"in_channels": 4}, {"patch_size": 16, "roi_size": 64}])
def test_a_foreign_patch_embedding_is_dropped_and_ours_stays(changes: dict[str, Any]) -> None:
    net = network(**changes)
    before = encoder_of(net)
    report = load_selfmedmae_encoder(net, make_selfmedmae_state_dict(3))
    for key in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
        assert torch.equal(encoder_of(net)[key], before[key])
        why = dict(report.dropped)[f"encoder.{key}"]
        assert why.startswith("channels or patch size differ")
        assert f"encoder.{key}" not in report.matched
        assert f"encoder.{key}" in dict(report.kept)


def test_the_position_table_is_resized_to_another_grid() -> None:
    """Trilinear resizing keeps a table that is linear over the grid linear: exact away from the border."""
    state = make_selfmedmae_state_dict(4, grid=(4, 4, 4))
    ramp = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 4, 4, 24).reshape(1, 64, 24)
    net = network(roi_size=(64, 32, 32))
    report = load_selfmedmae_encoder(net, state | {"encoder_pos_embed": ramp})
    rows = net.encoder.pos_embed[0, 1:].reshape(8, 4, 4, 24)[:, 2, 1, 5]
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(rows.detach(), expected)
    assert report.resized == ("encoder_pos_embed: grid (4, 4, 4) -> (8, 4, 4)",)
    assert "encoder_pos_embed" not in report.matched


def test_a_grid_that_is_no_cube_has_to_be_named() -> None:
    state = make_selfmedmae_state_dict(5, grid=(6, 4, 4))
    net = network()
    before = encoder_of(net)
    with pytest.raises(CheckpointError, match="grid of the position table must be known; received 96 rows"):
        load_selfmedmae_encoder(net, state)
    with pytest.raises(CheckpointError, match="give source_grid"):
        load_selfmedmae_encoder(net, state, source_grid=(4, 4, 4))
    assert all(torch.equal(value, before[key]) for key, value in encoder_of(net).items())
    report = load_selfmedmae_encoder(net, state, source_grid=(6, 4, 4))
    assert report.resized == ("encoder_pos_embed: grid (6, 4, 4) -> (4, 4, 4)",)
    torch.testing.assert_close(
        net.encoder.pos_embed[0, 1:].detach().reshape(4, 4, 4, 24)[:, 0, 3],
        _interpolated(sine_cosine_table((6, 4, 4), 24)[0, 1:].reshape(6, 4, 4, 24)[:, 0, 3]),
    )


def _interpolated(rows: Tensor) -> Tensor:
    """Linear interpolation of six rows at the centres of four."""
    result = []
    for place in range(4):
        position = (place + 0.5) * 6 / 4 - 0.5
        low = int(position)
        share = position - low
        result.append((1 - share) * rows[low] + share * rows[low + 1])
    return torch.stack(result)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.blocks.1.norm1.bias": None}, "missing: encoder.blocks.1.norm1.bias"),
        ({"encoder.cls_token": None}, "missing: encoder.cls_token"),
        ({"encoder_pos_embed": None}, "missing: encoder.pos_embed"),
        ({"encoder.blocks.1.attn.qkv.bias": None}, "missing: encoder.blocks.1.attn.qkv.bias"),
        ({"head.weight": (2, 2)}, "unknown: head.weight"),
        ({"encoder.blocks.4.norm1.bias": (24,)}, "unknown: encoder.blocks.4.norm1.bias"),
        ({"encoder.norm.bias": (12,)}, r"encoder.norm.bias \(12,\) instead of \(24,\)"),
        ({"encoder_pos_embed": (1, 64, 12)}, r"encoder_pos_embed \(1, 64, 12\) instead of \(1, L, 24\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_network_untouched(
    changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    state = make_selfmedmae_state_dict(6)
    for key, shape in changes.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = torch.ones(shape)
    net = network()
    before = encoder_of(net)
    with pytest.raises(CheckpointError, match=message):
        load_selfmedmae_encoder(net, state)
    assert all(torch.equal(value, before[key]) for key, value in encoder_of(net).items())


def test_another_depth_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"missing: encoder.blocks.3.norm1.weight"):
        load_selfmedmae_encoder(network(), make_selfmedmae_state_dict(7, depth=3))


def test_a_network_without_class_token_drops_it() -> None:
    net = network(class_token=False)
    report = load_selfmedmae_encoder(net, make_selfmedmae_state_dict(8))
    assert dict(report.dropped)["encoder.cls_token"] == "the network has no class token"
    assert net.encoder.pos_embed.shape == (1, 64, 24)


def test_the_report_reads_as_one_line_per_reason() -> None:
    report = AdapterReport(
        matched=("a", "b"),
        resized=("table: grid (1, 1, 1) -> (2, 2, 2)",),
        dropped=(*((f"decoder.{i}", "decoder") for i in range(5)), ("mask", "mask token")),
        kept=(("encoder.x", "left as it was"),),
    )
    assert str(report).splitlines() == [
        "matched 2 parameters",
        "resized table: grid (1, 1, 1) -> (2, 2, 2)",
        "dropped 5 (decoder): decoder.0, decoder.1, decoder.2 and 2 more",
        "dropped 1 (mask token): mask",
        "kept 1 (left as it was): encoder.x",
    ]
