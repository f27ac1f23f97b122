"""Published models: equal logits and equal selections, and nothing taken that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference.published import published_dense_logits, published_sparse_logits
from reference.published_state import make_published_state_dict, wrap
from sparseg.checkpoints.adapters import from_published, read_foreign_state
from sparseg.errors import CheckpointError
from sparseg.models.config import PUBLISHED_OPTIONS

State = dict[str, Tensor]
HEADS = {"num_heads": 4, "assembly_num_heads": 3, "pruning_stages": (1, 2, 3)}


def image(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def doubled(state: State) -> State:
    return {key: value.double() for key, value in state.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parity
@pytest.mark.parametrize(
    ("seed", "grid", "channels", "ratio", "sizes"),
    [
        (0, (4, 4, 4), 1, 0.9, {}),
        (1, (4, 4, 4), 1, 0.5, {"assembly_dim": 12, "assembly_depth": 2}),
        (2, (6, 4, 4), 4, 0.75, {"num_classes": 5, "feature_size": 3}),
        (3, (2, 4, 6), 2, 0.6, {"embed_dim": 36, "assembly_dim": 36, "mlp_ratio": 2}),
    ],
)
def test_sparse_logits_and_selections_equal_the_reference(
    seed: int, grid: tuple[int, int, int], channels: int, ratio: float, sizes: dict[str, int]
) -> None:
    roi = tuple(8 * edge for edge in grid)
    state = make_published_state_dict(seed, grid=grid, in_channels=channels, **sizes)
    net = from_published(state, roi_size=roi, prune_ratio=ratio, **HEADS)
    batch = image(seed, 2, channels, *roi)
    expected, groups = published_sparse_logits(
        doubled(state), batch.double(), patch_size=8, prune_ratio=ratio, **HEADS
    )
    with torch.no_grad():
        single = net(batch)
        double = net.double()(batch.double(), return_stages=True)
    assert relative(single, expected) <= 1e-5
    assert relative(double.logits, expected) <= 1e-12
    for row, image_groups in enumerate(groups):
        assert [stage.indices[row].tolist() for stage in double.stages] == image_groups


@pytest.mark.parity
def test_sparse_logits_equal_the_reference_where_no_token_survives() -> None:
    state = make_published_state_dict(4, grid=(4, 2, 2))
    net = from_published(state, roi_size=(32, 16, 16), prune_ratio=0.8, **HEADS)
    assert net.token_counts() == [16, 3, 0, 0]
    batch = image(4, 1, 1, 32, 16, 16).double()
    expected, _ = published_sparse_logits(doubled(state), batch, patch_size=8, prune_ratio=0.8, **HEADS)
    with torch.no_grad():
        assert relative(net.double()(batch), expected) <= 1e-12


@pytest.mark.parity
def test_sparse_patch_16_equals_the_reference() -> None:
    state = make_published_state_dict(5, grid=(2, 2, 2), patch_size=16)
    net = from_published(state, roi_size=32, prune_ratio=0.5, **HEADS)
    batch = image(5, 1, 1, 32, 32, 32).double()
    expected, _ = published_sparse_logits(doubled(state), batch, patch_size=16, prune_ratio=0.5, **HEADS)
    with torch.no_grad():
        assert relative(net.double()(batch), expected) <= 1e-12


@pytest.mark.parity
@pytest.mark.parametrize(
    ("seed", "patch_size", "grid", "channels"),
    [(6, 8, (4, 4, 4), 1), (7, 8, (6, 4, 4), 3), (8, 16, (2, 2, 2), 2)],
)
def test_dense_logits_equal_the_reference(
    seed: int, patch_size: int, grid: tuple[int, int, int], channels: int
) -> None:
    roi = tuple(patch_size * edge for edge in grid)
    state = make_published_state_dict(
        seed, grid=grid, patch_size=patch_size, in_channels=channels, depth=12, sparse=False
    )
    net = from_published(state, roi_size=roi, num_heads=4)
    batch = image(seed, 2, channels, *roi)
    expected = published_dense_logits(doubled(state), batch.double(), patch_size=patch_size, num_heads=4)
    with torch.no_grad():
        assert relative(net(batch), expected) <= 1e-5
        assert relative(net.double()(batch.double()), expected) <= 1e-12


@pytest.mark.parametrize(
    ("ratio", "roi", "expected"),
    [(0.9, (96, 96, 96), [1728, 172, 17, 1]), (0.75, (128, 128, 128), [4096, 1024, 256, 64])],
)
def test_token_counts_are_the_published_ones(
    ratio: float, roi: tuple[int, int, int], expected: list[int]
) -> None:
    grid = tuple(edge // 8 for edge in roi)
    state = make_published_state_dict(0, grid=grid, embed_dim=12, assembly_dim=12)
    net = from_published(state, roi_size=roi, prune_ratio=ratio, **HEADS)
    assert net.token_counts() == expected


def test_published_options_are_switched_on_and_the_network_is_evaluating() -> None:
    net = from_published(make_published_state_dict(0), roi_size=32, **HEADS)
    assert {name: getattr(net.config, name) for name in PUBLISHED_OPTIONS} == PUBLISHED_OPTIONS
    assert net.config.keep_ratio == 1 - 0.9 != 0.1
    assert not net.training


def test_dense_networks_have_no_assembler_and_a_skip_per_depth() -> None:
    net = from_published(make_published_state_dict(0, depth=12, sparse=False), roi_size=32, num_heads=4)
    assert net.assembler is None
    assert (net.config.skips, net.config.skip_blocks) == ("per_depth", (3, 6, 9))


@pytest.mark.parametrize(("outer", "module"), [(True, True), (True, False), (False, True)])
def test_wrapping_makes_no_difference(outer: bool, module: bool) -> None:
    state = make_published_state_dict(9)
    plain = from_published(state, roi_size=32, **HEADS).state_dict()
    wrapped = from_published(wrap(state, outer=outer, module=module), roi_size=32, **HEADS).state_dict()
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(plain[key], wrapped[key]) for key in plain)


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def reshaped(key: str, *shape: int) -> Callable[[State], State]:
    return lambda state: state | {key: torch.zeros(shape)}


REFUSED = {
    "missing bias": (without("encoder.blocks.2.attn.proj.bias"), "missing: encoder.blocks.2.attn.proj.bias"),
    "missing anchor": (without("decoder.out.conv.conv.weight"), "missing: decoder.out.conv.conv.weight"),
    "missing patch embedding": (
        without("encoder.patch_embed.proj.weight"),
        "missing: encoder.patch_embed.proj",
    ),
    "missing table": (
        without("completion_net.completion.pos_embed"),
        "missing: completion_net.completion.pos",
    ),
    "missing stage": (without("encoder.mid_norm_list.1.weight"), "missing: encoder.mid_norm_list.1.weight"),
    "unknown": (reshaped("head.weight", 2, 2), "unknown: head.weight"),
    "unknown in a block": (reshaped("encoder.blocks.0.ls1.gamma", 24), "unknown: encoder.blocks.0.ls1.gamma"),
    "our own name": (reshaped("assembler.out_norm.weight", 24), "unknown: assembler.out_norm.weight"),
    "narrow norm": (reshaped("encoder.norm.weight", 23), r"encoder.norm.weight \(23,\) instead of \(24,\)"),
    "short position": (reshaped("encoder.pos_embed", 1, 64, 24), r"encoder.pos_embed \(1, 64, 24\)"),
    "long table": (reshaped("completion_net.completion.pos_embed", 1, 66, 24), r"\(1, 66, 24\) instead of"),
    "other table": (reshaped("completion_net.completion.pos_embed", 1, 65, 24), "sine-cosine table"),
    "flat kernel": (reshaped("encoder.patch_embed.proj.weight", 24, 512), "instead of 5 axes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str) -> None:
    change, message = REFUSED[case]
    state = change(make_published_state_dict(10))
    with pytest.raises(CheckpointError, match=message):
        from_published(wrap(state), roi_size=32, **HEADS)


def test_a_dense_state_with_a_foreign_depth_is_refused() -> None:
    state = make_published_state_dict(0, depth=8, sparse=False)
    with pytest.raises(CheckpointError, match="depth of 12; received 8"):
        from_published(state, roi_size=32, num_heads=4)


def test_another_number_of_stages_is_refused() -> None:
    options = HEADS | {"pruning_stages": (1, 2)}
    with pytest.raises(CheckpointError, match=r"unknown: encoder\.score_predictor_list\.2"):
        from_published(make_published_state_dict(0), roi_size=32, **options)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": 3}, {"epoch": 3, "loss": 0.1}])
def test_contents_that_are_no_weights_are_refused(content: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="must map names to tensors"):
        from_published(content, roi_size=32)


def test_a_file_is_read_as_plain_tensors_only(tmp_path: Path) -> None:
    state = make_published_state_dict(11, grid=(2, 2, 2))
    good = tmp_path / "good.pt"
    torch.save(wrap(state), good)
    read = read_foreign_state(good)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)

    code = tmp_path / "code.pt"
    torch.save({"state_dict": state, "args": Path("x")}, code)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(good.read_bytes()[:100])
    for path in (code, broken):
        with pytest.raises(CheckpointError, match="readable as plain tensors") as caught:
            read_foreign_state(path)
        assert "weights_only" not in str(caught.value)  # torch's advice to run whatever the file holds
    with pytest.raises(CheckpointError, match="must exist"):
        read_foreign_state(tmp_path / "absent.pt")
