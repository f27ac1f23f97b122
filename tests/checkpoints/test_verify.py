"""The stored test case: reproducible, and nothing that changes what a model computes gets past it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparseg.checkpoints.card import ModelCard, Provenance
from sparseg.checkpoints.folder import CARD, WEIGHTS, load_model, read_card, save_model
from sparseg.checkpoints.stored_case import (
    FILE,
    card_hash,
    decided,
    formula_input,
    make_stored_case,
    run_case,
)
from sparseg.checkpoints.verify import read_stored_case, verify_model, write_stored_case
from sparseg.errors import CheckpointError, NumericsError
from sparseg.layers.block import Block
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.preprocessing.config import PAPER_ABDOMEN_CT

WAVES = [[-0.231698453, -0.024245862, -0.473761737], [-0.191140071, -0.015299728, 0.046584461]]
NAMES = ("files", "weights", "network", "test case", "logits", "labels")


def tiny(**changes: Any) -> SparseUNETR:
    torch.manual_seed(0)
    return build_segmenter("test_tiny", **changes).eval()


def card(net: SparseUNETR, **changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "model": net.config,
        "preprocess": PAPER_ABDOMEN_CT,
        "channels": ("CT",),
        "labels": {0: "background", 1: "liver", 2: "tumor"},
    }
    return ModelCard(**(values | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    net = tiny()
    save_model(tmp_path / "model", net, card(net))
    write_stored_case(tmp_path / "model")
    return tmp_path / "model"


def status(folder: Path) -> dict[str, str]:
    return {check.name: check.status for check in verify_model(folder)}


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_that_is_what_it_was(folder: Path) -> None:
    assert status(folder) == dict.fromkeys(NAMES, "pass")
    stored = read_stored_case(folder)
    assert stored is not None
    assert make_stored_case(load_model(folder), read_card(folder)) == stored
    assert sum(stored.label_counts) == 16**3
    # Classes that never win would leave the labels' hash blind to most of the network.
    assert sum(count > 0 for count in stored.label_counts) > 1


def test_the_input_is_the_same_for_ever() -> None:
    image = formula_input((1, 2, 8, 6, 4), seed=3)
    assert image.dtype == torch.float32
    assert image.abs().max() <= 1
    torch.testing.assert_close(
        image[0, :, [0, 7, 3], [0, 5, 2], [0, 3, 1]],
        torch.tensor(WAVES),
        atol=1e-6,
        rtol=0,
    )
    assert not torch.equal(image, formula_input((1, 2, 8, 6, 4), seed=4))
    assert not torch.equal(image[0, 0], image[0, 1])


def test_an_input_with_a_clear_cut_is_taken() -> None:
    net = tiny()
    stored = make_stored_case(net, card(net))
    cuts = [run_case(net, stored.shape, seed)[1] for seed in range(8)]
    assert stored.token_cut == pytest.approx(cuts[stored.seed], abs=1e-6)
    clear = [seed for seed, cut in enumerate(cuts) if cut >= 1e-3]
    assert stored.seed == (clear[0] if clear else max(range(8), key=cuts.__getitem__))
    dense = tiny(pruning_stages=())
    assert make_stored_case(dense, card(dense)).token_cut is None


def test_regions_are_decided_one_by_one() -> None:
    logits = torch.tensor([[-1.0, 2.0, 3.0], [1.0, -2.0, -3.0]]).reshape(2, 3, 1, 1)
    _, counts = decided(logits, regions=True)
    assert counts == (2, 1)
    _, counts = decided(logits, regions=False)
    assert counts == (2, 1)
    labels, _ = decided(logits, regions=False)
    assert decided(-logits, regions=False)[0] != labels


def test_other_weights_with_a_card_that_vouches_for_them(folder: Path) -> None:
    net = tiny()
    with torch.no_grad():
        for value in net.encoder.parameters():
            value.mul_(1.01)
    stored = (folder / FILE).read_bytes()
    save_model(folder, net, card(net))
    (folder / FILE).write_bytes(stored)
    assert status(folder)["test case"] == "FAIL"
    rewrite(folder / FILE, weights_sha256=read_card(folder).weights_sha256)
    found = status(folder)
    assert (found["test case"], found["logits"]) == ("pass", "FAIL")


def test_damaged_or_exchanged_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["encoder.norm.weight"] *= 1.001
    save_file(tensors, folder / WEIGHTS)
    assert status(folder) == {"files": "pass", "network": "FAIL"}
    (folder / WEIGHTS).unlink()
    assert status(folder) == {"files": "FAIL"}


def test_a_card_without_a_hash_vouches_for_nothing(folder: Path) -> None:
    rewrite(folder / CARD, weights_sha256="")
    assert status(folder)["weights"] == "FAIL"


@pytest.mark.parametrize(
    ("change", "found"),
    [({"overlap": 0.25}, "FAIL"), ({"provenance": Provenance(note="checked").model_dump()}, "pass")],
)
def test_a_changed_card(folder: Path, change: dict[str, Any], found: str) -> None:
    rewrite(folder / CARD, **change)
    assert status(folder)["test case"] == found


def test_software_that_computes_something_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, **options: honest(self, x, **options) * 1.01)
    found = status(folder)
    assert [found[name] for name in NAMES[:4]] == ["pass"] * 4
    assert found["logits"] == "FAIL"


def test_rounding_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of 1e-6 changes labels only where two classes are as good as equal."""
    honest = SparseUNETR.complete

    def noisy(self: SparseUNETR, encoded: Any, grid: Any) -> Any:
        final, skips = honest(self, encoded, grid)
        return final * (1 + 1e-6), skips

    monkeypatch.setattr(SparseUNETR, "complete", noisy)
    assert status(folder)["logits"] == "pass"
    assert status(folder)["labels"] == "pass"


def test_labels_elsewhere_fail_even_where_the_samples_agree(folder: Path) -> None:
    stored = read_stored_case(folder)
    assert stored is not None
    first, second, third = stored.label_counts
    rewrite(folder / FILE, labels_sha256="0" * 64, label_counts=[first - 2, second + 2, third])
    assert status(folder)["labels"] == "pass"
    rewrite(folder / FILE, labels_sha256="0" * 64, label_counts=[first - 9, second + 9, third])
    assert status(folder)["labels"] == "FAIL"


def test_none_stored_and_a_damaged_one(folder: Path) -> None:
    for text in ("", "{", "[]", '{"seed": 1}'):
        (folder / FILE).write_text(text)
        assert status(folder)["test case"] == "FAIL"
    (folder / FILE).unlink()
    assert status(folder) == dict.fromkeys(NAMES[:3], "pass") | {"test case": "none"}
    assert read_stored_case(folder) is None


def test_nothing_is_stored_for_what_is_no_model(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for value in tensors.values():
        value.fill_(3e38)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="SHA-256"):
        write_stored_case(folder)
    net = load_model_unchecked(folder)
    with pytest.raises(NumericsError, match="finite logits"):
        make_stored_case(net, card(net))


def load_model_unchecked(folder: Path) -> SparseUNETR:
    rewrite(folder / CARD, weights_sha256="")
    return load_model(folder)


def test_what_a_card_says_about_running(folder: Path) -> None:
    found = read_card(folder)
    assert card_hash(found) == card_hash(found.model_copy(update={"provenance": Provenance(steps=9)}))
    assert card_hash(found) != card_hash(
        found.model_copy(update={"labels": {0: "background", 1: "a", 2: "b"}})
    )


def test_the_shipped_model_passes() -> None:
    shipped = Path(__file__).parents[2] / "models" / "sample_ct"
    assert status(shipped) == dict.fromkeys(NAMES, "pass")
