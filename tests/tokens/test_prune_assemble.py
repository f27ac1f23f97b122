"""Pruning takes nothing away, assembly puts all of it back, and gradients reach the scores both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparseg.tokens.assemble import TokenAssembler, assemble_grid
from sparseg.tokens.prune import TokenPruning, full_grid, gather_tokens, prune_tokens
from sparseg.tokens.select import num_keep, straight_through_mask
from sparseg.tokens.stages import StageTokens


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows_sorted(indices: Tensor) -> bool:
    return bool((indices.diff(dim=1) > 0).all())


@pytest.mark.parametrize("n", [1, 2, 7, 27, 60])
@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.5, 1.0])
def test_kept_and_pruned_partition_the_tokens_and_keep_their_values(n: int, ratio: float) -> None:
    tokens, k = seeded(n, 3, n, 4), num_keep(n, ratio)
    present = StageTokens(tokens, torch.arange(100, 100 + 2 * n, 2).expand(3, n))
    kept, pruned = prune_tokens(present, seeded(n + 1, 3, n), k)
    assert kept.tokens.shape == (3, k, 4)
    for group in (kept, pruned):
        assert group.indices.dtype == torch.int64
        assert rows_sorted(group.indices)
        assert torch.equal(group.tokens, gather_tokens(tokens, (group.indices - 100) // 2))
        assert group.gate is None
    both = torch.cat((kept.indices, pruned.indices), dim=1).sort(dim=1).values
    assert torch.equal(both, present.indices)


def test_the_highest_scores_stay() -> None:
    kept, pruned = prune_tokens(full_grid(seeded(0, 1, 5, 2)), torch.tensor([[0.1, 5.0, -1.0, 3.0, 0.2]]), 2)
    assert kept.indices.tolist() == [[1, 3]]
    assert pruned.indices.tolist() == [[0, 2, 4]]


def test_a_mask_changes_no_value() -> None:
    tokens, scores = seeded(1, 2, 9, 4), seeded(2, 2, 9)
    mask = straight_through_mask(scores, 4, soft_topk="budget_exact", temperature=0.5)
    plain, masked = (prune_tokens(full_grid(tokens), scores, 4, m) for m in (None, mask))
    for a, b in zip(plain, masked, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.indices, b.indices)
    assert masked[1].gate is not None
    assert masked[1].gate.tolist() == [[1.0] * 5] * 2


@pytest.mark.parametrize("length", [8, 27, 60, 61])
@pytest.mark.parametrize("training", [True, False])
def test_assembly_undoes_three_prunings_exactly(length: int, training: bool) -> None:
    torch.manual_seed(0)
    tokens = seeded(3, 2, length, 8)
    present, groups = full_grid(tokens), []
    for _ in range(3):
        stage = TokenPruning(8).train(training)
        present, pruned, _ = stage(present, num_keep(present.indices.shape[1], 0.5))
        groups.append(pruned)
    assert torch.equal(assemble_grid([*groups, present]), tokens)
    # Each image has its own selection; were they equal, the test could not see mixed-up rows.
    assert not torch.equal(groups[0].indices[0], groups[0].indices[1])


def test_nothing_pruned_gives_an_empty_group() -> None:
    tokens = seeded(4, 2, 6, 8)
    kept, pruned, _ = TokenPruning(8)(full_grid(tokens), 6)
    assert pruned.tokens.shape == (2, 0, 8)
    assert torch.equal(assemble_grid([pruned, kept]), tokens)


def gradient_through(
    branch: int, *, soft_topk: str = "budget_exact", published_placement: bool = False
) -> float:
    """Largest gradient at the predictor when only one group of tokens (0 pruned, 1 kept) enters the loss."""
    torch.manual_seed(5)
    stage = TokenPruning(24, soft_topk=soft_topk)  # type: ignore[arg-type]
    assembler = TokenAssembler(
        24, (3, 3, 3), num_pruned_groups=1, assembly_dim=24, assembly_depth=1, num_heads=2, mlp_ratio=4.0,
        norm_eps=1e-6,
    )  # fmt: skip
    norm = nn.LayerNorm(24, eps=1e-6)
    kept, pruned, _ = stage(full_grid(seeded(6, 2, 27, 24)), 9)
    assert pruned.gate is not None
    if published_placement:
        pruned = StageTokens(pruned.tokens * pruned.gate.unsqueeze(-1), pruned.indices)
    # As in the encoder: a block lies between the mask on the kept tokens and the final norm.
    block = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True, norm_first=True)
    kept = StageTokens(norm(block(kept.tokens)), kept.indices)
    groups = [pruned, kept]
    other = groups[1 - branch]
    groups[1 - branch] = StageTokens(other.tokens.detach(), other.indices)
    assembler(groups, None, (3, 3, 3)).mul(seeded(7, 2, 27, 24)).mean().backward()
    return max(float(p.grad.abs().max()) for p in stage.parameters() if p.grad is not None)


@pytest.mark.parametrize("branch", [0, 1], ids=["pruned", "kept"])
def test_scores_learn_through_each_branch_alone(branch: int) -> None:
    assert gradient_through(branch) > 1e-7


def test_a_mask_before_the_norm_teaches_nothing() -> None:
    """The published placement: LayerNorm cancels a factor put before it."""
    ours, published = gradient_through(0), gradient_through(0, published_placement=True)
    assert ours > 1e-7
    assert published < 1e-4 * ours


def test_noise_is_drawn_in_training_only_and_from_the_seed() -> None:
    torch.manual_seed(8)
    stage = TokenPruning(8, score_transform="log_sigmoid", soft_topk="gumbel_softmax", noise_scale=1.0)
    present = full_grid(seeded(9, 1, 40, 8))
    stage.eval()
    plain = stage(present, 10)[0].indices
    assert torch.equal(stage(present, 10)[0].indices, plain)
    stage.train()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        kept, pruned, _ = stage(present, 10)
        draws.append(kept.indices)
        assert torch.equal(assemble_grid([pruned, kept]), present.tokens)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], plain)


def test_without_noise_training_selects_what_evaluation_selects() -> None:
    torch.manual_seed(10)
    stage, present = TokenPruning(8), full_grid(seeded(11, 3, 40, 8))
    before = torch.get_rng_state()
    chosen = [stage.train(mode)(present, 10)[0].indices for mode in (True, False)]
    assert torch.equal(*chosen)
    assert torch.equal(before, torch.get_rng_state())


def assembler(grid: tuple[int, int, int], depth: int = 1, **changes: int) -> TokenAssembler:
    torch.manual_seed(12)
    sizes = {"num_pruned_groups": 1, "assembly_dim": 12, "num_heads": 2} | changes
    return TokenAssembler(8, grid, assembly_depth=depth, mlp_ratio=2.0, norm_eps=1e-6, **sizes).double()  # type: ignore[arg-type]


def test_assembler_without_blocks_is_norm_project_mark_place() -> None:
    net, grid = assembler((2, 2, 2), depth=0), (2, 2, 2)
    tokens = seeded(13, 1, 8, 8).double()
    pruned = StageTokens(tokens[:, [0, 3, 4, 6, 7]], torch.tensor([[0, 3, 4, 6, 7]]))
    kept = StageTokens(tokens[:, [1, 2, 5]], torch.tensor([[1, 2, 5]]))
    rows = []
    for index in range(8):
        token = tokens[0, index]
        group = 0 if index in (0, 3, 4, 6, 7) else 1
        token = net.pruned_norms[0](token) if group == 0 else token
        x = net.projections[group](token) + net.stage_embeddings[group][0, 0] + net.position[index]
        rows.append(net.out_linear(net.out_norm(x)))
    assert (net([pruned, kept], None, grid)[0] - torch.stack(rows)).abs().max() <= 1e-12


def test_class_token_takes_part_and_is_dropped() -> None:
    net = assembler((2, 2, 2))
    groups = [
        StageTokens(seeded(14, 1, 5, 8).double(), torch.tensor([[0, 3, 4, 6, 7]])),
        StageTokens(seeded(15, 1, 3, 8).double(), torch.tensor([[1, 2, 5]])),
    ]
    one, two = (net(groups, seeded(seed, 1, 1, 8).double(), (2, 2, 2)) for seed in (16, 17))
    assert one.shape == (1, 8, 8)
    assert (one - two).abs().max() > 1e-6
    assert (one - net(groups, None, (2, 2, 2))).abs().max() > 1e-6


def test_another_grid_gets_its_own_position_table() -> None:
    small, large = assembler((2, 2, 2)), assembler((3, 2, 1))
    large.load_state_dict(small.state_dict())
    tokens = seeded(18, 1, 6, 8).double()
    groups = [
        StageTokens(tokens[:, :4], torch.arange(4)[None]),
        StageTokens(tokens[:, 4:], torch.arange(4, 6)[None]),
    ]
    assert (small(groups, None, (3, 2, 1)) - large(groups, None, (3, 2, 1))).abs().max() <= 1e-7
