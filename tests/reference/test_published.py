"""The reference itself: counts, partitions, and every hand-written operation against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reference import published, published_decoder
from reference.published_state import make_published_state_dict, sine_cosine_table

SPARSE = {"patch_size": 8, "num_heads": 4, "assembly_num_heads": 3, "pruning_stages": (1, 2, 3)}


def image(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "expected"),
    [
        (1728, 0.9, [172, 17, 1]),
        (4096, 0.75, [1024, 256, 64]),
        (1000, 0.9, [99, 9, 0]),
        (512, 0.9, [51, 5, 0]),
        (216, 0.9, [21, 2, 0]),
    ],
)
def test_counts_compound_and_follow_floating_point(
    num_tokens: int, ratio: float, expected: list[int]
) -> None:
    counts = []
    for _ in expected:
        num_tokens = published.num_keep(num_tokens, ratio)
        counts.append(num_tokens)
    assert counts == expected


def test_groups_partition_the_grid_in_ascending_order() -> None:
    state = make_published_state_dict(0, grid=(4, 4, 2), dtype=torch.float64)
    logits, all_groups = published.published_sparse_logits(
        state, image(0, 2, 1, 32, 32, 16), **SPARSE, prune_ratio=0.5
    )
    assert logits.shape == (2, 3, 32, 32, 16)
    for groups in all_groups:
        assert [len(group) for group in groups] == [16, 8, 4, 4]
        assert all(group == sorted(group) for group in groups)
        assert sorted(index for group in groups for index in group) == list(range(32))
    assert all_groups[0] != all_groups[1]


def test_no_survivor_is_possible_at_the_published_count() -> None:
    state = make_published_state_dict(1, grid=(4, 2, 2), dtype=torch.float64)
    logits, all_groups = published.published_sparse_logits(
        state, image(1, 1, 1, 32, 16, 16), **SPARSE, prune_ratio=0.7
    )
    assert [len(group) for group in all_groups[0]] == [12, 3, 1, 0]
    assert torch.isfinite(logits).all()


def test_pruned_tokens_no_longer_reach_the_survivors() -> None:
    """A token pruned at stage 1 may be perturbed afterwards without any change to later groups."""
    state = make_published_state_dict(2, grid=(2, 2, 2), dtype=torch.float64)
    options = {"patch_size": 8, "num_heads": 4, "pruning_stages": (1, 2, 3), "prune_ratio": 0.5}
    tokens, groups = published.encode_sparse(state, image(2, 1, 16, 16, 16), **options)
    changed = dict(state)
    changed["encoder.mid_norm_list.0.bias"] = state["encoder.mid_norm_list.0.bias"] + 1
    tokens_changed, groups_changed = published.encode_sparse(changed, image(2, 1, 16, 16, 16), **options)
    assert groups == groups_changed
    torch.testing.assert_close(tokens_changed[0], tokens[0] + 1)
    for before, after in zip(tokens[1:], tokens_changed[1:], strict=True):
        assert torch.equal(before, after)


def test_scores_are_the_log_sigmoid_of_local_and_averaged_channels() -> None:
    state = make_published_state_dict(3, dtype=torch.float64)
    x = image(3, 5, 24)
    name = "encoder.score_predictor_list.1"
    norm = state[f"{name}.in_mlp.0.weight"], state[f"{name}.in_mlp.0.bias"]
    inner = F.gelu(
        F.linear(F.layer_norm(x, (24,), *norm, eps=1e-5), *weights(state, f"{name}.in_mlp.1")),
    )
    joined = torch.cat([inner[:, :12], inner[:, 12:].mean(0, keepdim=True).expand(5, 12)], dim=1)
    for layer in (0, 2):
        joined = F.gelu(F.linear(joined, *weights(state, f"{name}.out_mlp.{layer}")))
    expected = F.logsigmoid(F.linear(joined, *weights(state, f"{name}.out_mlp.4")))[:, 0]
    torch.testing.assert_close(published.scores(state, 1, x), expected)


def weights(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def test_embedding_is_a_strided_convolution_flattened_row_major() -> None:
    state = make_published_state_dict(4, grid=(3, 2, 1), in_channels=2, dtype=torch.float64)
    sample = image(4, 2, 24, 16, 8)
    patches = F.conv3d(sample[None], *weights(state, "encoder.patch_embed.proj"), stride=8)
    expected = torch.cat([state["encoder.cls_token"], patches.flatten(2).transpose(1, 2)], dim=1)
    expected = expected + state["encoder.pos_embed"]
    torch.testing.assert_close(published.embed(state, sample, 8), expected[0])


def test_attention_equals_the_fused_kernel() -> None:
    state = make_published_state_dict(5, dtype=torch.float64)
    x = image(5, 7, 24)
    qkv = F.linear(x, *weights(state, "encoder.blocks.0.attn.qkv")).reshape(7, 3, 4, 6).permute(1, 2, 0, 3)
    mixed = F.scaled_dot_product_attention(*qkv).transpose(0, 1).reshape(7, 24)
    expected = F.linear(mixed, *weights(state, "encoder.blocks.0.attn.proj"))
    torch.testing.assert_close(published.attention(state, "encoder.blocks.0.attn", x, 4), expected)


def test_norm_and_pooling_equal_torch() -> None:
    state = make_published_state_dict(6, dtype=torch.float64)
    x = image(6, 7, 24)
    expected = F.layer_norm(x, (24,), *weights(state, "encoder.norm"), eps=1e-6)
    torch.testing.assert_close(published.layer_norm(state, "encoder.norm", x, 1e-6), expected)
    grid = image(7, 3, 4, 5, 6)
    pooled = F.avg_pool3d(grid[None], kernel_size=3, stride=2, padding=1)[0]
    torch.testing.assert_close(published_decoder.average_pool(grid), pooled)
    torch.testing.assert_close(published_decoder.instance_norm(grid), F.instance_norm(grid[None])[0])


def test_transposed_convolution_equals_torch() -> None:
    kernel = image(8, 3, 2, 2, 2, 2)
    x = image(9, 3, 2, 3, 4)
    expected = F.conv_transpose3d(x[None], kernel, stride=2)[0]
    torch.testing.assert_close(published_decoder.up({"up.conv.weight": kernel}, "up", x), expected)


@pytest.mark.parity
@pytest.mark.parametrize(("incoming", "out"), [(3, 2), (2, 2)])
def test_residual_block_equals_monai(incoming: int, out: int) -> None:
    from monai.networks.blocks.dynunet_block import UnetResBlock

    torch.manual_seed(10)
    module = UnetResBlock(3, incoming, out, kernel_size=3, stride=1, norm_name="instance").double()
    state = {f"r.{key}": value for key, value in module.state_dict().items()}
    x = image(10, incoming, 4, 5, 6)
    torch.testing.assert_close(published_decoder.residual(state, "r", x), module(x[None])[0])


def test_sine_cosine_table_has_a_zero_row_and_six_parts() -> None:
    table = sine_cosine_table((2, 3, 4), 12)[0]
    assert table.shape == (25, 12)
    assert torch.equal(table[0], torch.zeros(12))
    row = table[1 + (1 * 3 + 2) * 4 + 3]
    angles = torch.tensor([1.0, 0.01, 2.0, 0.02, 3.0, 0.03])
    expected = torch.stack([angles.reshape(3, 2).sin(), angles.reshape(3, 2).cos()], dim=1).flatten()
    torch.testing.assert_close(row, expected)


@pytest.mark.parametrize(
    ("seen", "block"), [("encoder2", 3), ("encoder3", 6), ("encoder4", 9), ("decoder5.transp_conv", 11)]
)
def test_dense_model_reads_each_depth_where_it_should(seen: str, block: int) -> None:
    """With every other way into the decoder closed, the logits follow one block and none behind it."""
    state = make_published_state_dict(11, grid=(2, 2, 2), depth=12, sparse=False, dtype=torch.float64)
    for entrance in ("encoder2", "encoder3", "encoder4", "decoder5.transp_conv"):
        if entrance != seen:
            state |= {
                k: torch.zeros_like(v) for k, v in state.items() if k.startswith(f"decoder.{entrance}.")
            }
    sample = image(11, 1, 1, 16, 16, 16)
    logits = published.published_dense_logits(state, sample, patch_size=8, num_heads=4)
    for changed, same in ((block, False), (block + 1, True)):
        key = f"encoder.blocks.{changed}.mlp.fc2.bias"
        if key not in state:
            continue
        other = state | {key: torch.flip(state[key], dims=(0,))}
        found = published.published_dense_logits(other, sample, patch_size=8, num_heads=4)
        assert torch.equal(found, logits) is same
