"""Plans around a network without patch tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from planning.tiny import facts_of, write_dataset
from sparseg.planning.plan import make_plan


@pytest.mark.parametrize(
    ("preset", "roi", "tokens"),
    [
        ("peer_segresnet_tiny", [24, 24, 16], ()),
        ("peer_unetr16_tiny", [32, 32, 32], (8,)),
        ("peer_swin_unetr_tiny", [64, 64, 64], ()),
    ],
)
def test_a_peer_gets_windows_of_its_step(
    tmp_path: Path, preset: str, roi: list[int], tokens: tuple[int, ...]
) -> None:
    dataset = write_dataset(tmp_path / "data")
    plan = make_plan(dataset, facts_of(dataset), preset=preset, measure=False, usable=2**34)
    assert plan.settings["preset"] == preset
    assert plan.settings["model"] == {"roi_size": roi}
    assert plan.estimates.token_counts == tokens
    assert plan.config().preset == preset
    assert ("patch tokens" in "\n".join(plan.estimates.lines())) is bool(tokens)
    assert "that cover the median prepared volume" in plan.explanations["model.roi_size"]
