"""A sparse network starts as its dense teacher and learns from its logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import load_model
from sparseg.errors import ConfigError
from sparseg.models.build import build_segmenter
from sparseg.models.config import SegmenterConfig
from sparseg.models.segmenter import SparseUNETR
from sparseg.training.distill_config import DistillConfig
from sparseg.training.teacher import (
    FOLDER,
    Teacher,
    divergence,
    find_teacher,
    sparse_settings,
    store_teacher,
    take_over,
)
from training.toy import CT, run_toy, write_toy_dataset

LABELS = {0: "background", 1: "liver", 2: "tumor"}


def dense(seed: int = 0, **changes: Any) -> SparseUNETR:
    torch.manual_seed(seed)
    net = build_segmenter("test_tiny", pruning_stages=(), keep_ratio=1.0, feature_size=2, **changes)
    assert isinstance(net, SparseUNETR)
    return net.eval()


def student_of(net: SparseUNETR, **changes: Any) -> SparseUNETR:
    return SparseUNETR(**sparse_settings(net.config, changes)).eval()


def card_of(net: SparseUNETR) -> ModelCard:
    return ModelCard(model=net.config, preprocess=CT, channels=("CT",), labels=LABELS)


def logits(*rows: list[float]) -> Tensor:
    """One voxel per row, `[1, K, n, 1, 1]`."""
    return torch.tensor(rows, dtype=torch.float64).T[None, :, :, None, None]


def test_divergence_of_classes_by_hand() -> None:
    student, teacher = logits([0.0, 0.0], [2.0, 0.0]), logits([math.log(9), 0.0], [2.0, 0.0])
    # Teacher 0.9 / 0.1 against 0.5 / 0.5 at one voxel, equal at the other.
    wanted = (0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)) / 2
    assert float(divergence(student, teacher, temperature=1.0, regions=False)) == pytest.approx(wanted)
    # At T = 2 the teacher is 0.75 / 0.25, and the result is multiplied by 4.
    wanted = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    assert float(divergence(student, teacher, temperature=2.0, regions=False)) == pytest.approx(wanted)


def test_divergence_of_regions_is_the_sum_over_outputs() -> None:
    student, teacher = logits([0.0, 0.0]), logits([math.log(9), math.log(3)])
    single = [p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5) for p in (0.9, 0.75)]
    found = divergence(student, teacher, temperature=1.0, regions=True)
    assert float(found) == pytest.approx(sum(single))


def test_the_gradient_leads_to_the_teacher_and_none_goes_into_it() -> None:
    teacher = dense()
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = teacher(image)
    student = (wanted + torch.randn_like(wanted)).requires_grad_()
    guide = Teacher(teacher, DistillConfig(weight=0.5), regions=False)
    optimizer = torch.optim.Adam([student], lr=0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = guide.loss([student, student.detach()], image)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    start = torch.zeros_like(wanted)
    whole = divergence(start, wanted, temperature=2.0, regions=False)
    assert float(guide.loss(start, image)) == pytest.approx(0.5 * float(whole))


def test_the_student_has_all_weights_of_the_teacher_and_keeps_all_tokens_as_it_does() -> None:
    teacher = dense(3)
    student = student_of(teacher, keep_ratio=1.0)
    fresh = take_over(student, teacher)
    assert set(fresh) == {
        "encoder.prunings",
        *(f"assembler.{name}" for name in ("pruned_norms", "projections", "stage_embeddings")),
        *(f"assembler.{name}" for name in ("blocks", "out_norm", "out_linear")),
    }
    image = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = student.encoder(image), teacher.encoder(image)
    assert torch.equal(found.stages[-1].tokens, wanted.stages[-1].tokens)
    for a, b in zip(found.skips, wanted.skips, strict=True):
        assert torch.equal(a, b)


def test_settings_of_the_student() -> None:
    config = dense().config
    found = SegmenterConfig(**sparse_settings(config, {}))
    assert (found.pruning_stages, found.keep_ratio, found.scoring) == ((1, 2, 3), 0.25, "image")
    changed = sparse_settings(config, {"pruning_stages": [0], "keep_ratio": 0.5, "assembly_depth": 0})
    assert (changed["pruning_stages"], changed["keep_ratio"], changed["assembly_depth"]) == ((0,), 0.5, 0)
    assert sparse_settings(config, {"patch_size": 4})["patch_size"] == (4, 4, 4)
    with pytest.raises(ConfigError, match=r"free are .*received model\.patch_size, model\.feature_size"):
        sparse_settings(config, {"patch_size": 8, "feature_size": 3})
    with pytest.raises(ConfigError, match=r"must be dense.*received pruning stages \[1, 2, 3\]"):
        sparse_settings(build_segmenter("test_tiny").config, {})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keep_ratio"):
        sparse_settings(config, {"keep_ratio": 0.0})


def test_weights_without_a_place_are_refused_before_anything_changes() -> None:
    teacher, other = dense(), dense(1, embed_dim=36)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ConfigError, match="no place for encoder"):
        take_over(other, teacher)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


def test_distillation_without_a_teacher_is_refused(tmp_path: Path) -> None:
    assert find_teacher(tmp_path, DistillConfig()) is None
    with pytest.raises(ConfigError, match=r"needs a teacher.*distill\.weight 0\.5") as caught:
        find_teacher(tmp_path, DistillConfig(weight=0.5))
    assert caught.value.code == "no-teacher"


def test_a_run_with_a_teacher_starts_as_it_and_goes_on_as_if_never_interrupted(tmp_path: Path) -> None:
    dataset = write_toy_dataset(tmp_path / "data")
    teacher = dense(4)
    settings = sparse_settings(teacher.config, {})
    model = {name: value for name, value in settings.items() if name not in ("in_channels", "num_classes")}
    options: dict[str, Any] = {"model": model, "distill": {"weight": 2.0}, "augment": {}, "max_steps": 4}
    for name in ("whole", "parts"):
        store_teacher(tmp_path / name, teacher, card_of(teacher))
    whole, _ = run_toy(dataset, tmp_path / "whole", **options)
    run_toy(dataset, tmp_path / "parts", until=2, **options)
    parts, _ = run_toy(dataset, tmp_path / "parts", resume=True, **options)
    for (name, a), b in zip(
        whole.plain_net.state_dict().items(), parts.plain_net.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    kept = load_model(tmp_path / "whole" / FOLDER).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    moved = whole.plain_net.state_dict()
    change = max(float((moved[name] - value).abs().max()) for name, value in kept.items())
    assert 0 < change < 0.05  # four steps from the teacher's weights, not from new ones
    untaught, _ = run_toy(
        dataset, tmp_path / "parts2", **{**options, "distill": {"weight": 0.0}, "max_steps": 1}
    )
    assert untaught.objective.teacher is None
