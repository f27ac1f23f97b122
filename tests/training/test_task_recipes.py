"""The recipes of the standing tasks: settings that exist, windows that every rival can be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparseg.compare.variants import parse_variants, settings_of
from sparseg.config import load_yaml, parse_config
from sparseg.datasets.sample_tasks import TITLES
from sparseg.models.baselines import baseline_options
from sparseg.models.config import SegmenterConfig
from sparseg.models.counts import token_counts
from sparseg.models.presets import preset
from sparseg.shapes import num_tokens
from sparseg.training.config import TrainConfig

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "tasks"
FILES = sorted(FOLDER.glob("*.yaml"))
VARIANTS = sorted(FOLDER.with_name("variants").glob("*.yaml"))


def model_of(config: TrainConfig, **changes: object) -> SegmenterConfig:
    return SegmenterConfig(**{**preset(config.preset), **config.model, **changes})


def test_every_task_has_a_small_and_a_large_recipe():
    assert {file.stem for file in FILES} == {f"{task}{size}" for task in TITLES for size in ("", "_gpu")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe_suits_the_sparse_model_and_its_rivals(file):
    config = parse_config(TrainConfig, load_yaml(file), where=file)
    sparse = model_of(config)
    assert sparse.patch_size == (8, 8, 8)
    counts = token_counts(sparse, num_tokens(sparse.grid))
    assert counts[1] == counts[0] // 4
    assert counts[-1] >= 1
    for name in ("dense_p8", "dense_p16", "evit_mask", "tome"):
        rival = model_of(config, **baseline_options(name)["model"])
        assert rival.roi_size == sparse.roi_size
        assert all(edge % patch == 0 for edge, patch in zip(rival.roi_size, rival.patch_size, strict=True))
    assert config.max_steps % config.validate_every == 0
    assert config.fold == 0


@pytest.mark.parametrize("task", sorted(TITLES))
def test_the_small_recipe_stays_small(task):
    """A table of many rivals and seeds must fit two cores: tens of thousands of voxels, not millions."""
    config = parse_config(TrainConfig, load_yaml(FOLDER / f"{task}.yaml"))
    h, w, d = model_of(config).roi_size
    assert h * w * d * config.batch_size * config.max_steps <= 2e8


@pytest.mark.parametrize("task", sorted(TITLES))
@pytest.mark.parametrize("file", VARIANTS, ids=lambda file: file.stem)
def test_variants_of_a_file_suit_every_task(file, task):
    base = load_yaml(FOLDER / f"{task}.yaml")
    rows = parse_variants(str(file))
    assert len(rows) >= 3
    configs = {name: settings_of(name, row, base) for name, row in rows.items()}
    models = {name: model_of(config) for name, config in configs.items()}
    assert {model.roi_size for model in models.values()} == {tuple(base["model"]["roi_size"])}
    for name, model in models.items():
        if name.startswith("keep_"):
            assert model.keep_ratio == int(name.removeprefix("keep_")) / 100
    if file.stem == "elastic":
        separate = sorted(model.keep_ratio for name, model in models.items() if name != "elastic")
        assert list(configs["elastic"].selection.elastic_keep) == separate
    else:
        assert {model.block for model in models.values()} == {"eva"}
        assert {bool(model.pruning_stages) for model in models.values()} == {True, False}
