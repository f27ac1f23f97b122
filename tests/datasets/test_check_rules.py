"""Rules over a whole set, on facts made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import NUM_QUANTILES, CaseFacts, ChannelFacts
from sparseg.datasets.rules import set_findings

NAMES = {0: "background", 1: "liver", 2: "tumor"}


def make_facts(number: int, *, minimum: float = -1024.0, maximum: float = 1500.0, **changes) -> CaseFacts:
    channel = ChannelFacts(minimum, maximum, 0.9, 0.0, 200.0, (40.0 + number,) * NUM_QUANTILES)
    facts = CaseFacts(
        shape=(20, 20, 10),
        spacing=(0.8, 0.8, 2.5),
        codes="LPS",
        affine=(0.0,) * 16,
        body_shape=(10, 10, 10),
        nonzero_shape=(20, 20, 10),
        channels=(channel,),
        label_counts={0: 3000, 1: 900, 2: 100},
        image_hash=f"image {number}",
        label_hash=f"label {number}",
    )
    return replace(facts, **changes)


def with_labelled_values(facts: CaseFacts, value: float) -> CaseFacts:
    channel = replace(facts.channels[0], foreground_quantiles=(value,) * NUM_QUANTILES)
    return replace(facts, channels=(channel,))


def found(facts: list[CaseFacts], labels: dict[int, str] | None = None) -> list[tuple[str, str, str]]:
    cases = tuple(Case(f"c{n}", (Path(f"c{n}.nii"),), Path(f"l{n}.nii")) for n in range(len(facts)))
    dataset = Dataset("toy", ("CT",), NAMES if labels is None else labels, cases, (), Path())
    return [(f.severity, f.code, f.case) for f in set_findings(dataset, list(zip(cases, facts, strict=True)))]


def sound(number: int = 12) -> list[CaseFacts]:
    return [make_facts(n) for n in range(number)]


def test_a_sound_set_has_no_findings():
    assert found(sound()) == []
    assert found(sound(1)) == []
    assert found([]) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"spacing": (0.8, 0.8, 7.6)}, ("note", "spacing-unusual", "c3")),
        ({"spacing": (0.8, 0.8, 26.0)}, ("warning", "spacing-unit", "c3")),
        ({"spacing": (0.0008, 0.0008, 0.0025)}, ("warning", "spacing-unit", "c3")),
        ({"label_counts": {0: 4000}, "label_hash": "empty"}, ("warning", "label-empty", "c3")),
        ({"label_hash": "label 1"}, ("warning", "label-copied", "c3")),
        ({"image_hash": "image 1"}, ("error", "case-duplicate", "c3")),
        ({"codes": "RAS"}, ("note", "orientation-mixed", "")),
        ({"minimum": 0.0, "maximum": 2500.0}, ("warning", "intensity-offset", "c3")),
        ({"maximum": 1e6}, ("warning", "intensity-scale", "c3")),
        ({"minimum": 5.0, "maximum": 5.0}, ("warning", "image-constant", "c3")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_case_unlike_the_others(change, expected):
    facts = sound()
    facts[3] = make_facts(3, **change)
    assert found(facts) == [expected]


def test_labels_at_the_wrong_place():
    facts = sound()
    facts[2] = with_labelled_values(facts[2], -1024.0)
    facts[4] = with_labelled_values(facts[4], -900.0)
    assert found(facts) == [
        ("warning", "label-in-background", "c2"),
        ("warning", "label-in-air", "c2"),
        ("warning", "label-in-air", "c4"),
    ]
    # A lung set lies in air throughout.
    assert found([with_labelled_values(case, -850.0) for case in sound()]) == []


def test_structures_that_few_cases_show():
    one = [replace(case, label_counts={0: 3000, 1: 900}) for case in sound()]
    assert found(one) == [("warning", "label-unused", "")]
    one[5] = make_facts(5)
    assert found(one) == [("warning", "label-rare", "")]
    assert found(sound(), labels={}) == [("note", "labels-undeclared", "")]
    unlabelled = [replace(case, label_counts=None, label_hash="") for case in sound()]
    assert found(unlabelled) == []


def test_which_duplicates_may_be_dropped():
    first, again = make_facts(0), make_facts(1, image_hash="image 0")
    cases = tuple(Case(name, (Path(f"{name}.nii"),), Path("l.nii")) for name in ("a", "b"))
    dataset = Dataset("toy", ("CT",), NAMES, cases, (), Path())

    def finding(second: CaseFacts):
        return next(iter(set_findings(dataset, list(zip(cases, (first, second), strict=True)))))

    other = finding(again)
    assert (other.case, other.repair) == ("b", "")
    assert "case a again, with other labels" in other.message
    moved = finding(replace(again, label_hash="label 0", affine=(1.0,) * 16))
    assert moved.repair == ""
    assert "with the same labels, at another place" in moved.message
    same = finding(replace(again, label_hash="label 0"))
    assert same.repair == "drop-duplicate"
    assert same.message.endswith("case a again, with the same labels")
