"""The sparse encoder: without pruning it is the dense one, and skips show the grid as it stood."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.shapes import token_grid


def pair(seed: int, **options: object) -> tuple[SparseUNETR, SparseUNETR]:
    """A pruning model and the dense one with the same encoder weights."""
    torch.manual_seed(seed)
    sparse = build_segmenter("test_tiny", **options).eval()
    dense = build_segmenter("test_tiny", **{**options, "keep_ratio": 0.5, "pruning_stages": ()}).eval()
    wanted = dense.encoder.state_dict()
    dense.encoder.load_state_dict({k: v for k, v in sparse.encoder.state_dict().items() if k in wanted})
    return sparse, dense


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_keep_ratio_one_is_the_model_without_pruning() -> None:
    sparse, dense = pair(0, keep_ratio=1.0)
    image = seeded(1, 2, 1, 16, 16, 16)
    for training in (False, True):
        found, expected = sparse.train(training).encoder(image), dense.train(training).encoder(image)
        assert [group.indices.shape[1] for group in found.stages] == [0, 0, 0, 64]
        assert torch.equal(found.stages[-1].indices, expected.stages[-1].indices)
        assert (found.stages[-1].tokens - expected.stages[-1].tokens).abs().max() <= 1e-6
        assert found.class_token is not None
        assert expected.class_token is not None
        assert (found.class_token - expected.class_token).abs().max() <= 1e-6
        assert len(found.skips) == len(expected.skips) == 3
        for a, b in zip(found.skips, expected.skips, strict=True):
            assert (a - b).abs().max() <= 1e-6
        assert not torch.equal(found.skips[0], found.skips[1])


def test_tokens_leave_with_the_value_they_have_in_the_dense_model() -> None:
    """Up to the first stage nothing is pruned, so what leaves there equals the dense hidden state."""
    sparse, dense = pair(2, pruning_stages=(2, 3), keep_ratio=0.3)
    image = seeded(3, 2, 1, 16, 16, 16)
    found, expected = sparse.encoder(image), dense.encoder(image)
    hidden = expected.skips[0]  # after block 1
    left = found.stages[0]
    rows = hidden.gather(1, left.indices.unsqueeze(-1).expand(-1, -1, 24))
    assert (left.tokens - rows).abs().max() <= 1e-6
    assert (found.skips[0] - hidden).abs().max() <= 1e-6
    # After the stage the grid still holds them unchanged, while the survivors went on.
    later = found.skips[1].gather(1, left.indices.unsqueeze(-1).expand(-1, -1, 24))
    assert torch.equal(later, left.tokens)
    assert (found.skips[1] - hidden).abs().max() > 1e-3


def test_scores_decide_and_the_class_token_stays() -> None:
    sparse, _ = pair(4)
    with torch.no_grad():
        sparse.encoder.pos_embed.normal_()  # the class token has a row of its own, at first zero
    found = sparse.encoder(seeded(5, 1, 1, 16, 16, 16))
    assert found.class_token is not None
    assert found.class_token.shape == (1, 1, 24)
    stage = sparse.encoder.prunings[0]
    hidden = sparse.encoder.blocks[0](
        torch.cat(
            (
                sparse.encoder.cls_token + sparse.encoder.pos_embed[:, :1],
                sparse.encoder.patch_embed(seeded(5, 1, 1, 16, 16, 16)) + sparse.encoder.pos_embed[:, 1:],
            ),
            dim=1,
        )
    )
    one = build_segmenter("test_tiny", depth=1, pruning_stages=()).encoder.eval()
    one.load_state_dict({k: v for k, v in sparse.encoder.state_dict().items() if k in one.state_dict()})
    class_token = one(seeded(5, 1, 1, 16, 16, 16)).class_token
    assert class_token is not None
    assert (class_token - hidden[:, :1]).abs().max() <= 1e-6
    hidden = hidden[:, 1:]
    best = stage.scores(hidden)[0].argsort(descending=True)[:32].sort().values
    left = sorted(set(range(64)) - set(best.tolist()))
    assert found.stages[0].indices[0].tolist() == left


def test_skips_are_taken_as_often_as_the_decoder_needs_them() -> None:
    torch.manual_seed(6)
    net = build_segmenter("test_tiny", depth=2, pruning_stages=(1,)).eval()
    output = net.encoder(seeded(7, 1, 1, 16, 16, 16))
    assert len(output.skips) == 3
    assert torch.equal(output.skips[1], output.skips[2])
    shared = build_segmenter("test_tiny", skips="shared").eval()
    image = seeded(8, 1, 1, 16, 16, 16)
    final, skips = shared.complete(shared.encoder(image), token_grid((16, 16, 16), (4, 4, 4)))
    assert [skip is final for skip in skips] == [True, True, True]


def test_drop_path_grows_with_depth() -> None:
    net = build_segmenter("test_tiny", drop_path=0.3)
    rates = [block.drop_path.rate for block in net.encoder.blocks]
    assert rates[0] == 0
    assert [round(rate, 9) for rate in rates] == [0.0, 0.1, 0.2, 0.3]
