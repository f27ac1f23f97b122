"""The fingerprint of a dataset: its numbers, and that storage does not change them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseg.datasets import fingerprint as module
from sparseg.datasets.facts import CaseFacts, ChannelFacts, measure
from sparseg.datasets.fingerprint import (
    Fingerprint,
    fingerprint_key,
    load_or_make_fingerprint,
    make_fingerprint,
)
from sparseg.errors import DatasetError
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume


def channel(low: float, high: float, **changes: Any) -> ChannelFacts:
    quantiles = tuple(np.linspace(low, high, 201).tolist())
    return replace(ChannelFacts(low, high, 1.0, 0.0, 1.0, quantiles), **changes)


def case(number: int = 0, **changes: Any) -> CaseFacts:
    values: dict[str, Any] = {
        "shape": (10, 20, 30),
        "spacing": (1.0, 1.0, 3.0),
        "codes": "RAS",
        "affine": (1.0,) * 16,
        "body_shape": (8, 18, 30),
        "nonzero_shape": (9, 19, 30),
        "channels": (channel(0, 200),),
        "label_counts": {0: 90, 1: 10},
        "image_hash": f"image{number}",
        "label_hash": f"label{number}",
    }
    return CaseFacts(**(values | changes))


def stored_as(volume: Volume, order: tuple[int, int, int], flip: tuple[int, ...]) -> Volume:
    """The same anatomy with other axes."""
    array = volume.array.transpose(0, *(1 + axis for axis in order))
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, list(order)]
    for axis in flip:
        array = np.flip(array, 1 + axis)
        affine[:3, 3] += affine[:3, axis] * (array.shape[1 + axis] - 1)
        affine[:3, axis] = -affine[:3, axis]
    return Volume(np.ascontiguousarray(array), affine, "elsewhere")


def test_order_names_and_axes_do_not_matter() -> None:
    pairs = [make_phantom((14, 12, 10), seed=seed) for seed in range(3)]
    first = make_fingerprint([measure(*pair) for pair in pairs])
    turned = [tuple(stored_as(volume, (2, 0, 1), (0, 2)) for volume in pair) for pair in pairs]
    second = make_fingerprint([measure(image, labels) for image, labels in reversed(turned)])
    assert first == second
    assert first.key == fingerprint_key([measure(*pair) for pair in pairs])


def test_another_label_gives_another_key() -> None:
    image, labels = make_phantom((14, 12, 10))
    changed = labels.array.copy()
    changed[0, 0, 0, 0] = 2
    keys = [fingerprint_key([measure(image, Volume(a, labels.affine))]) for a in (labels.array, changed)]
    assert keys[0] != keys[1]


def test_shapes_and_spacings() -> None:
    spacings = [(1.0, 1.0, float(edge)) for edge in (1, 2, 3, 4, 5)]
    found = make_fingerprint(
        [case(i, spacing=s, shape=(10 * (i + 1), 20, 30)) for i, s in enumerate(spacings)]
    )
    assert found.num_cases == 5
    assert found.spacing.minimum == (1, 1, 1)
    assert found.spacing.p10 == pytest.approx((1, 1, 1.4))
    assert found.spacing.median == (1, 1, 3)
    assert found.spacing.p90 == pytest.approx((1, 1, 4.6))
    assert found.spacing.maximum == (1, 1, 5)
    assert found.shape.median == (30, 20, 30)
    assert found.body_shape.median == (8, 18, 30)
    assert found.nonzero_shape.median == (9, 19, 30)


def test_intensities_pool_the_cases_with_equal_weight() -> None:
    """The second case is far larger; it must not weigh more."""
    large = case(1, shape=(500, 500, 500), channels=(channel(1000, 1200),), label_counts={0: 10**8, 1: 10**7})
    found = make_fingerprint([case(0), large]).channels[0]
    assert found.mean == pytest.approx(600)
    assert found.deviation == pytest.approx(
        np.std(np.r_[np.linspace(0, 200, 201), np.linspace(1000, 1200, 201)])
    )
    assert found.low == pytest.approx(2.005)
    assert found.high == pytest.approx(1197.995)
    assert found.minimum == 500
    assert found.whole_share == 1


def test_values_between_whole_numbers_are_seen() -> None:
    found = make_fingerprint([case(channels=(channel(0, 100),))]).channels[0]
    assert found.whole_share == pytest.approx(101 / 201)


def test_a_channel_without_voxels_counts_as_zero() -> None:
    empty = channel(0, 0, foreground_quantiles=())
    found = make_fingerprint([case(channels=(empty,))]).channels[0]
    assert (found.low, found.high, found.mean, found.deviation) == (0, 0, 0, 0)


def test_classes() -> None:
    counts: list[dict[int, int] | None] = [{0: 90, 1: 10}, {0: 60, 2: 40}, {0: 50, 1: 50, 3: 0}, None]
    found = make_fingerprint([case(i, label_counts=c) for i, c in enumerate(counts)])
    assert found.class_shares == pytest.approx({0: 0.5, 1: 0.15, 2: 0.1})
    assert found.class_cases == {0: 3, 1: 2, 2: 1}


@pytest.mark.parametrize("facts", [[], [case(0), case(1, channels=(channel(0, 1), channel(0, 1)))]])
def test_no_cases_or_other_channels_are_refused(facts: list[CaseFacts]) -> None:
    with pytest.raises(DatasetError, match="one number of channels"):
        make_fingerprint(facts)


def test_stored_under_its_key_without_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [case(0), case(1)]
    first = load_or_make_fingerprint(facts, tmp_path / "deep")
    file = tmp_path / "deep" / f"{first.key}.json"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert Fingerprint.from_json(json.loads(file.read_text())["fingerprint"]) == first
    monkeypatch.setattr(module, "make_fingerprint", lambda _: pytest.fail("made again"))
    assert load_or_make_fingerprint(facts[::-1], tmp_path / "deep") == first


@pytest.mark.parametrize("damage", ["", "[]", '{"version": 1}', '{"version": 0, "fingerprint": {}}'])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    first = load_or_make_fingerprint([case()], tmp_path)
    file = tmp_path / f"{first.key}.json"
    file.write_text(damage)
    assert load_or_make_fingerprint([case()], tmp_path) == first
    assert json.loads(file.read_text())["version"] == 1
