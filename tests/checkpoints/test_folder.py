"""Model folders: what is written comes back bit for bit, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparseg.checkpoints.card import ModelCard, Provenance
from sparseg.checkpoints.folder import CARD, WEIGHTS, find_model, load_model, read_card, save_model
from sparseg.errors import CheckpointError, NumericsError
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.preprocessing.config import PAPER_ABDOMEN_CT


def tiny(seed: int = 0) -> SparseUNETR:
    torch.manual_seed(seed)
    return build_segmenter("test_tiny", feature_size=2)


def card(net: SparseUNETR, **changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "model": net.config,
        "preprocess": PAPER_ABDOMEN_CT,
        "channels": ("CT",),
        "labels": {0: "background", 1: "liver", 2: "tumor"},
        "provenance": Provenance(dataset="toy", steps=7, validation_dice=0.25),
    }
    return ModelCard(**(values | changes))


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, SparseUNETR]:
    net = tiny()
    save_model(tmp_path / "model", net, card(net))
    return tmp_path / "model", net


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the card, leaving the hash of the weights as it is."""
    values = json.loads((folder / CARD).read_text())
    change(values)
    (folder / CARD).write_text(json.dumps(values))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights and let the card vouch for nothing."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    rewrite(folder, lambda values: values.update(weights_sha256=""))


def test_round_trip_is_bit_equal(stored: tuple[Path, SparseUNETR]) -> None:
    folder, net = stored
    loaded = load_model(folder)
    assert not loaded.training
    assert loaded.config == net.config
    expected = net.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(image), net.eval()(image))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD, WEIGHTS])


def test_weights_are_as_readable_as_the_card(stored: tuple[Path, SparseUNETR]) -> None:
    """Safetensors lets their owner alone read them, which keeps models from being shared in a group."""
    folder, _ = stored
    modes = {(folder / name).stat().st_mode & 0o777 for name in (CARD, WEIGHTS)}
    assert len(modes) == 1
    assert modes != {0o600}


def test_card_comes_back_with_the_hash_of_the_weights(stored: tuple[Path, SparseUNETR]) -> None:
    folder, net = stored
    found = read_card(folder)
    assert found.model_copy(update={"weights_sha256": ""}) == card(net)
    assert len(found.weights_sha256) == 64


def test_half_precision_is_close_and_loads_as_float32(tmp_path: Path) -> None:
    net = tiny(1)
    save_model(tmp_path / "model", net, card(net), dtype=torch.float16)
    loaded = load_model(tmp_path / "model").state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    for name, value in net.state_dict().items():
        assert torch.equal(loaded[name], value.half().float()), name
        assert (loaded[name] - value).abs().max() <= 1e-3
    size = (tmp_path / "model" / WEIGHTS).stat().st_size
    assert size < 0.6 * 4 * sum(value.numel() for value in net.state_dict().values())


def test_saving_again_replaces(stored: tuple[Path, SparseUNETR]) -> None:
    folder, _ = stored
    net = tiny(2)
    save_model(folder, net, card(net, provenance=Provenance(steps=8)))
    assert read_card(folder).provenance.steps == 8
    assert torch.equal(load_model(folder).encoder.pos_embed, net.encoder.pos_embed)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("place", [9, 200, -1, -5000])
def test_one_flipped_bit_is_refused(stored: tuple[Path, SparseUNETR], place: int) -> None:
    file = stored[0] / WEIGHTS
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256\); received another hash: the file is damaged"):
        load_model(stored[0])


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_short_file_is_refused_also_without_a_hash(stored: tuple[Path, SparseUNETR], length: int) -> None:
    rewrite(stored[0], lambda values: values.update(weights_sha256=""))
    file = stored[0] / WEIGHTS
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="the weights must be readable") as caught:
        load_model(stored[0])
    assert "\n" not in str(caught.value)


NORM = "encoder.norm.weight"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda t: t.pop(NORM), f"missing {NORM}"),
        (lambda t: t.update(extra=torch.ones(1)), "unexpected extra"),
        (lambda t: t.update({NORM: torch.ones(25)}), rf"{NORM} has shape \(25,\), needs \(24,\)"),
        (lambda t: t.update({NORM: torch.full((24,), torch.nan)}), f"{NORM} is not finite"),
        (lambda t: t.update({f"x{i}": torch.ones(1) for i in range(9)}), "unexpected x0.*and 3 more"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    stored: tuple[Path, SparseUNETR], change: Callable[[dict[str, torch.Tensor]], None], rule: str
) -> None:
    reweigh(stored[0], change)
    with pytest.raises(CheckpointError, match=rule):
        load_model(stored[0])


@pytest.mark.parametrize(
    ("value", "dtype"), [(torch.nan, torch.float32), (torch.inf, torch.float32), (7e4, torch.float16)]
)
def test_weights_that_are_not_finite_are_never_stored(
    stored: tuple[Path, SparseUNETR], value: float, dtype: torch.dtype
) -> None:
    folder, net = stored
    before = (folder / WEIGHTS).read_bytes()
    with torch.no_grad():
        net.encoder.norm.bias[3] = value
    with pytest.raises(NumericsError, match=r"encoder\.norm\.bias"):
        save_model(folder, net, card(net), dtype=dtype)
    assert (folder / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda v: v.update(licence="x"), "licence: unknown configuration key"),
        (lambda v: v["model"].update(depht=5), r"model\.sparse_unetr\.depht: unknown configuration key"),
        (lambda v: v.update(format_version=2), "format_version"),
        (lambda v: v["labels"].pop("2"), "the network has 3 outputs, the labels need 2"),
        (lambda v: v.update(regions={"whole": [1, 2]}), "the network has 3 outputs, the labels need 1"),
        (lambda v: v.update(channels=["CT", "PET"]), "the network has 1 channels, 2 are named"),
        (lambda v: v.pop("preprocess"), "preprocess"),
    ],
)
def test_a_wrong_card_is_refused(
    stored: tuple[Path, SparseUNETR], change: Callable[[dict[str, Any]], None], rule: str
) -> None:
    rewrite(stored[0], change)
    with pytest.raises(CheckpointError, match=rule) as caught:
        load_model(stored[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\udcff"])
def test_a_damaged_card_is_refused(stored: tuple[Path, SparseUNETR], text: str) -> None:
    (stored[0] / CARD).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="a model card must be complete and valid"):
        load_model(stored[0])


def test_a_card_cannot_be_made_inconsistent() -> None:
    net = tiny()
    with pytest.raises(ValueError, match="3 outputs"):
        card(net, labels={0: "background"})
    assert card(net, regions={"a": (1,), "b": (2,), "c": (1, 2)}).regions["c"] == (1, 2)


def test_weights_missing_or_no_model_at_all(stored: tuple[Path, SparseUNETR], tmp_path: Path) -> None:
    (stored[0] / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"must hold {WEIGHTS}"):
        load_model(stored[0])
    for folder in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(CheckpointError, match="neither here nor in best/ or last/"):
            load_model(folder)


def test_a_run_means_its_best_then_its_last_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny()
    save_model(tmp_path / "last", net, card(net))
    assert find_model(tmp_path).name == "last"
    save_model(tmp_path / "best", net, card(net))
    assert find_model(tmp_path).name == "best"
    monkeypatch.chdir(tmp_path)
    assert find_model(Path()).name == "best"
    monkeypatch.chdir(tmp_path / "last")
    assert find_model(Path()).name == "last"


def test_a_model_between_two_renames_is_found_and_saved_over(tmp_path: Path) -> None:
    one, two = tiny(1), tiny(2)
    save_model(tmp_path / "best", one, card(one))
    (tmp_path / "best").rename(tmp_path / ".best.old")
    for path in (tmp_path, tmp_path / "best"):
        assert torch.equal(load_model(path).encoder.pos_embed, one.encoder.pos_embed)
    save_model(tmp_path / "best", two, card(two))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
    assert torch.equal(load_model(tmp_path).encoder.norm.bias, two.encoder.norm.bias)
