"""`SparseUNETR`: identities between sizes, batches, windows and modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from sparseg.errors import ConfigError, ShapeError
from sparseg.models.build import build_segmenter, segmenter_from_config
from sparseg.models.config import PUBLISHED_OPTIONS
from sparseg.models.segmenter import SparseUNETR

TINY = {"embed_dim": 24, "depth": 4, "num_heads": 2, "feature_size": 2, "pruning_stages": (1, 2, 3)}


def tiny(seed: int = 0, **options: Any) -> SparseUNETR:
    torch.manual_seed(seed)
    return build_segmenter("test_tiny", **options)


def seeded(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def partition(stages: list[Any]) -> Tensor:
    for stage in stages:
        assert stage.indices.dtype == torch.int64
        assert (stage.indices.diff(dim=1) > 0).all()
    return torch.cat([stage.indices for stage in stages], dim=1).sort(dim=1).values


@pytest.mark.parametrize("training", [True, False])
def test_stages_partition_the_grid(training: bool) -> None:
    net = tiny().train(training)
    logits, stages = net(seeded(1, 3, 1, 16, 16, 16), return_stages=True)
    assert [stage.indices.shape[1] for stage in stages] == [32, 16, 8, 8]
    assert torch.equal(partition(stages), torch.arange(64).expand(3, 64))
    assert logits.shape == (3, 3, 16, 16, 16)
    assert torch.equal(logits, net(seeded(1, 3, 1, 16, 16, 16)))


@pytest.mark.parametrize("options", [{}, {"class_token": False}, {"skips": "shared"}])
def test_a_batch_is_its_cases_one_by_one(options: dict[str, Any]) -> None:
    net, images = tiny(2, **options).eval(), seeded(3, 3, 1, 16, 16, 16)
    with torch.no_grad():
        batch = net(images, return_stages=True)
        single = [net(image[None], return_stages=True) for image in images]
    assert (batch.logits - torch.cat([one.logits for one in single])).abs().max() <= 1e-5
    for number, stage in enumerate(batch.stages):
        assert torch.equal(stage.indices, torch.cat([one.stages[number].indices for one in single]))
    assert not torch.equal(batch.stages[0].indices[0], batch.stages[0].indices[1])


def test_without_noise_training_selects_and_predicts_as_evaluation() -> None:
    net, images = tiny(4), seeded(5, 2, 1, 16, 16, 16)
    train = net.train()(images, return_stages=True)
    evaluation = net.eval()(images, return_stages=True)
    for a, b in zip(train.stages, evaluation.stages, strict=True):
        assert torch.equal(a.indices, b.indices)
    assert (train.logits - evaluation.logits).abs().max() <= 1e-6


def test_the_published_noise_trains_with_finite_values() -> None:
    net = tiny(6, **PUBLISHED_OPTIONS, drop_path=0.1).train()
    logits, stages = net(seeded(7, 2, 1, 16, 16, 16), return_stages=True)
    assert logits.isfinite().all()
    assert torch.equal(partition(stages), torch.arange(64).expand(2, 64))
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_dense_model_has_nothing_to_prune_or_assemble() -> None:
    net = tiny(8, pruning_stages=())
    assert net.assembler is None
    assert not [name for name in net.state_dict() if "prunings" in name or "assembler" in name]
    assert net.token_counts() == [64]
    _, stages = net(seeded(9, 1, 1, 16, 16, 16), return_stages=True)
    assert [stage.indices.tolist() for stage in stages] == [[list(range(64))]]


@pytest.mark.parametrize(
    ("size", "patch"),
    [
        ((24, 40, 32), 8),
        ((16, 16, 32), 8),
        ((12, 20, 8), 4),
        ((32, 16, 16), 16),
        ((16, 24, 12), (8, 8, 4)),
        ((12, 10, 6), 2),
    ],
)
def test_other_windows_and_patches(size: tuple[int, int, int], patch: Any) -> None:
    """Odd token grids lose nothing: every voxel of the image still reaches its own logit."""
    torch.manual_seed(10)
    roi = tuple(2 * edge for edge in ((patch,) * 3 if isinstance(patch, int) else patch))
    net = SparseUNETR(1, 2, roi, patch, keep_ratio=0.5, **TINY).eval()
    image = seeded(11, 1, 1, *size)
    with torch.no_grad():
        logits, stages = net(image, return_stages=True)
        length = sum(stage.indices.shape[1] for stage in stages)
        changed = image.clone()
        changed[0, 0, -1, -1, -1] += 5
        difference = (net(changed) - logits).abs()
    assert logits.shape == (1, 2, *size)
    assert torch.equal(partition(stages), torch.arange(length)[None])
    assert length == torch.tensor(size).prod() // torch.tensor(net.config.patch_size).prod()
    assert difference[0, :, -1, -1, -1].min() > 1e-4


def test_a_resized_position_table_is_used_for_another_grid() -> None:
    torch.manual_seed(12)
    net = SparseUNETR(1, 2, 16, 4, **TINY).eval()
    with torch.no_grad():
        net.encoder.pos_embed.zero_()
        plain = net(seeded(13, 1, 1, 24, 16, 16))
        net.encoder.pos_embed.normal_()
        assert (net(seeded(13, 1, 1, 24, 16, 16)) - plain).abs().max() > 1e-4


def test_works_inside_monais_sliding_window() -> None:
    net = tiny(14).eval()
    image = seeded(15, 1, 1, 20, 16, 16)
    with torch.no_grad():
        found = sliding_window_inference(image, (16, 16, 16), 2, net, overlap=0.5)
        first, second = net(image[:, :, :16]), net(image[:, :, 4:])
    expected = (
        torch.nn.functional.pad(first, (0, 0, 0, 0, 0, 4))
        + torch.nn.functional.pad(second, (0, 0, 0, 0, 4, 0))
    ) / torch.tensor([1.0] * 4 + [2.0] * 12 + [1.0] * 4).reshape(20, 1, 1)
    assert (found - expected).abs().max() <= 1e-5


def test_rebuilt_from_its_own_settings() -> None:
    net = tiny(16, keep_ratio=(0.5, 0.4, 0.3), num_keep=(20, 10, 5), patch_size=(4, 4, 2)).eval()
    again = segmenter_from_config(net.config).eval()
    again.load_state_dict(net.state_dict())
    image = seeded(17, 1, 1, 16, 16, 16)
    assert again.config == net.config
    assert again.token_counts() == [128, 20, 10, 5]
    assert torch.equal(net(image), again(image))


def test_too_many_tokens_asked_for_a_small_window() -> None:
    net = tiny(18, num_keep=(40, 20, 10))
    assert net.token_counts() == [64, 40, 20, 10]
    with pytest.raises(ConfigError, match=r"^num_keep: stage 0 can keep at most the 32 tokens.*received 40"):
        net(seeded(19, 1, 1, 8, 16, 16))


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((1, 2, 16, 16, 16), r"takes \[B, 1, H, W, D\]; received \(1, 2, 16, 16, 16\)"),
        ((1, 16, 16, 16), r"takes \[B, 1, H, W, D\]"),
        ((1, 1, 16, 16, 18), r"multiple of the patch edge \(4, 4, 4\); received \(16, 16, 18\)"),
        ((1, 1, 4, 4, 4), r"must hold at least"),
    ],
)
def test_wrong_images_are_refused_in_one_line(shape: tuple[int, ...], rule: str) -> None:
    with pytest.raises(ShapeError, match=rule) as caught:
        tiny()(torch.zeros(shape))
    assert "\n" not in str(caught.value)
