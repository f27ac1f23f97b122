"""Rivals train as any other model does, and losses that could teach them nothing are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseg.checkpoints.folder import load_model
from sparseg.config import merge
from sparseg.errors import ConfigError
from sparseg.models.baselines import baseline_options
from sparseg.models.build import build_segmenter
from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset
from sparseg.training.selection import ratio_loss, require_trainable_scores
from sparseg.training.selection_config import SelectionConfig
from training.toy import Watcher, run_toy, toy_config


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("name", ["dynamicvit_mask", "tome"])
def test_a_run_trains_validates_and_stores(dataset: Path, tmp_path: Path, name: str) -> None:
    watcher, options = Watcher(), baseline_options(name)
    small = {"model": toy_config().model, "max_steps": 3}
    run_toy(dataset, tmp_path / "run", watcher, **merge(small, options))
    assert len(watcher.losses) == 3
    assert all(math.isfinite(loss) for loss in watcher.losses)
    assert load_model(tmp_path / "run").config.scoring == options["model"]["scoring"]
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert ("kept/3/foreground" in log) is (name != "tome")


def test_the_ratio_loss_leads_the_gates_to_the_share_wanted() -> None:
    torch.manual_seed(0)
    options = {**baseline_options("dynamicvit")["model"], "keep_ratio": 0.8, "feature_size": 2}
    net = build_segmenter("test_tiny", **options).train()
    optimizer = torch.optim.AdamW(net.encoder.prunings.parameters(), lr=1e-2)
    image = torch.randn(8, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))

    def shares() -> list[float]:
        return [float(stage.weight.detach().mean()) for stage in net.encoder(image).decisions]

    # Fresh gates pass half at each stage; 0.8 of 64, 51 and 40 tokens are 51, 40 and 32.
    assert shares() == pytest.approx([1 / 2, 1 / 4, 1 / 8], abs=0.06)
    for _ in range(40):
        optimizer.zero_grad()
        ratio_loss(net.encoder(image).decisions).backward()
        optimizer.step()
    assert shares() == pytest.approx([51 / 64, 40 / 64, 32 / 64], abs=0.06)


@pytest.mark.parametrize(
    ("scoring", "settings", "rule"),
    [
        (
            "random",
            {"score_weight": 0.1},
            r"a score_weight needs a scoring .*predictor, image, gates, class_attention",
        ),
        ("entropy", {"score_weight": 0.1}, "received scoring entropy"),
        ("predictor", {"ratio_weight": 2.0}, r"selection.ratio_weight: a ratio_weight needs .*\(gates\)"),
    ],
)
def test_losses_that_teach_nothing_are_refused(scoring: str, settings: dict[str, Any], rule: str) -> None:
    model = SegmenterConfig.model_validate({**preset("test_tiny"), "scoring": scoring})
    with pytest.raises(ConfigError, match=rule):
        require_trainable_scores(model, SelectionConfig(**settings))
    require_trainable_scores(model, SelectionConfig())
