"""The stored curve: what comes back, what is refused, and what is said about it."""

from __future__ import annotations

import json

import pytest

from predict.curves import curve, point, usual
from predict.threshold_model import tiny_card, tiny_net
from sparseg.errors import CheckpointError
from sparseg.predict.calibration import FILE, curve_table, findings, read_calibration, write_calibration


@pytest.fixture
def card():
    return tiny_card(tiny_net()).model_copy(update={"weights_sha256": "ab" * 32})


def test_what_is_written_comes_back(tmp_path, card):
    stored = usual()
    assert write_calibration(tmp_path, stored) == tmp_path / FILE
    assert read_calibration(tmp_path, card) == stored
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_none_stale_or_damaged(tmp_path, card):
    with pytest.raises(CheckpointError, match=r"sparseg calibrate .* DATASET") as caught:
        read_calibration(tmp_path, card)
    assert caught.value.code == "no-calibration"
    write_calibration(tmp_path, usual(weights_sha256="cd" * 32))
    with pytest.raises(CheckpointError, match="received cdcdcdcdcdcd, the model has abab") as caught:
        read_calibration(tmp_path, card)
    assert caught.value.code == "calibration-stale"
    values = json.loads((tmp_path / FILE).read_text())
    for text in ("", "{", "[]", json.dumps(values | {"points": []}), json.dumps(values | {"extra": 1})):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(CheckpointError) as caught:
            read_calibration(tmp_path, card)
        assert caught.value.code == "calibration-damaged"


def test_names_and_own_point():
    own = point(None, 0.5, 1.0, own=True)
    assert (own.name, own.ratio) == ("own counts", None)
    assert (point(0.25, 0.5, 1.0).name, point(0.25, 0.5, 1.0).ratio) == ("0.25", 0.25)
    mixed = point(0.5, 0.5, 1.0, keep_ratios=(0.5, 0.3))
    assert (mixed.name, mixed.ratio) == ("0.5, 0.3", None)
    assert usual().own.ratio == 0.5
    assert curve_table(usual())[1:3] == [
        ["0.1", "100 > 10 > 1", 0.60, "-0.200", 0.01, "0.4000", "0.3600-0.4400"],
        ["0.25", "100 > 25 > 1", 0.70, "-0.100", 0.01, "0.9000", "0.8100-0.9900"],
    ]
    assert curve_table(usual())[3][:5] == ["0.5 (own)", "100 > 50 > 1", 0.80, "-", None]


def test_a_curve_as_expected_needs_no_words():
    assert findings(usual()) == []


def test_what_is_odd_is_said():
    odd = curve(
        point(0.1, 0.79, 2.0),
        point(0.25, 0.70, 0.9, dice_noise=None),
        point(0.5, 0.80, 1.9, own=True, dice_noise=0.0),
        num_cases=2,
        cases="labelled",
    )
    assert findings(odd) == [
        "not monotone: Dice falls though more tokens are kept: 0.1 (0.790) > 0.25 (0.700)",
        "not monotone: time falls though more tokens are kept: 0.1 (2.0000 s) > 0.25 (0.9000 s)",
        "within noise (2 standard errors over cases and structures): Dice at 0.1 cannot be told from that at "
        "the model's own 0.5",
        "too few defined Dice values to tell noise at 0.25",
        "measured with 2 case(s) only: expect other Dice on other cases",
        "the cases may have been trained on: Dice is optimistic",
    ]
