"""Folds keep patients together, spread labels evenly, and survive their file and a growing dataset."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sparseg.datasets.dataset import Case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.splits import Splits, find_splits, make_folds, read_splits, write_splits
from sparseg.errors import ConfigError, DatasetError, SparsegError


def case(name, subject="", fold=None):
    return Case(name, (Path(f"{name}.nii.gz"),), Path(f"{name}_seg.nii.gz"), subject=subject, fold=fold)


CASES = [case(f"c{i:02}") for i in range(23)]
# Label 1 is everywhere, label 2 in eleven cases, label 3 in five.
PRESENT = {
    c.name: frozenset({0, 1} | ({2} if i % 2 else set()) | ({3} if i % 5 == 2 else set()))
    for i, c in enumerate(CASES)
}
NONE: dict[str, frozenset[int]] = {}


def holding(names, label):
    return sum(label in PRESENT[name] for name in names)


@pytest.mark.parametrize("seed", range(5))
def test_labels_and_numbers_are_spread_evenly(seed):
    splits = make_folds(CASES, PRESENT, seed=seed)
    assert sorted(map(len, splits.folds)) == [4, 4, 5, 5, 5]
    assert [holding(val, 3) for val in splits.folds] == [1] * 5
    assert sorted(holding(val, 2) for val in splits.folds) == [2, 2, 2, 2, 3]
    everyone = sorted(c.name for c in CASES)
    assert sorted(name for val in splits.folds for name in val) == everyone
    for fold in range(5):
        assert sorted(splits.train(fold) + splits.val(fold)) == everyone


def test_order_does_not_matter_and_the_seed_does():
    splits = make_folds(CASES, PRESENT, seed=1)
    shuffled = [CASES[i] for i in np.random.default_rng(0).permutation(len(CASES))]
    assert make_folds(shuffled, PRESENT, seed=1) == splits
    assert make_folds(CASES, PRESENT, seed=2).folds != splits.folds


def test_patients_stay_together():
    cases = [case(f"p{i}_{j}", subject=f"p{i}") for i in range(9) for j in range(1 + i % 4)]
    splits = make_folds(cases, NONE, num_folds=4)
    home = {}
    for fold, val in enumerate(splits.folds):
        for name in val:
            assert home.setdefault(name.split("_")[0], fold) == fold
    assert sorted(map(len, splits.folds)) == [5, 5, 5, 6]


def test_many_cases_of_one_patient_leave_no_fold_empty():
    cases = [*(case(f"a{i}", subject="a") for i in range(12)), case("b"), case("c"), case("d")]
    assert sorted(map(len, make_folds(cases, NONE, num_folds=4).folds)) == [1, 1, 1, 12]


def test_fewer_patients_than_folds():
    assert sorted(make_folds(CASES[:3], PRESENT).folds) == [("c00",), ("c01",), ("c02",)]
    two = make_folds(CASES[:2], PRESENT)
    assert {two.train(0), two.val(0)} == {("c00",), ("c01",)}


def test_one_patient_serves_both_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="sparseg"):
        splits = make_folds(CASES[:1], PRESENT)
    assert splits.train(0) == splits.val(0) == ("c00",)
    assert "one case only (c00)" in caplog.text
    both = make_folds([case("x", subject="p"), case("y", subject="p")], NONE)
    assert both.train(0) == both.val(0) == ("x", "y")
    assert "2 images of one patient" in caplog.text


def test_folds_of_the_dataset_win():
    cases = [case(f"c{i}", fold=1 + i % 3) for i in range(7)]
    assert make_folds(cases, NONE).folds == (("c0", "c3", "c6"), ("c1", "c4"), ("c2", "c5"))


def test_explicit_validation_list_is_fold_zero():
    cases = [case("a"), case("b", fold=0), case("c"), case("d", fold=0)]
    splits = make_folds(cases, NONE)
    assert (splits.folds, splits.train(0)) == ((("b", "d"),), ("a", "c"))


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([case("a", fold=0), case("b", fold=1), case("c")], "every case or none.*received none for c"),
        ([case("a", fold=0), case("b", fold=0)], "two or more"),
        ([case("a", "p", 0), case("b", "p", 1), case("c", "q", 1)], "both sides of fold 0; received a, b"),
        ([], "at least one case"),
    ],
)
def test_folds_that_cannot_be_used_are_refused(cases, message):
    with pytest.raises(DatasetError, match=message):
        make_folds(cases, NONE)


def test_number_of_folds_is_checked():
    with pytest.raises(ConfigError, match="num_folds"):
        make_folds(CASES, PRESENT, num_folds=1)


def test_a_growing_dataset_keeps_its_folds():
    first = make_folds(CASES[:12], PRESENT, num_folds=4, seed=3)
    grown = make_folds(CASES, PRESENT, seed=9, previous=first)
    for old, new in zip(first.folds, grown.folds, strict=True):
        assert set(old) <= set(new)
    assert sorted(map(len, grown.folds)) == [5, 6, 6, 6]
    shrunk = make_folds([c for c in CASES if c.name != "c05"], PRESENT, previous=grown)
    assert [set(val) for val in shrunk.folds] == [set(val) - {"c05"} for val in grown.folds]


def test_a_new_case_follows_its_patient():
    cases = [case(f"p{i}_0", subject=f"p{i}") for i in range(8)]
    first = make_folds(cases, NONE, num_folds=4)
    grown = make_folds([*cases, case("late", subject="p3")], NONE, previous=first)
    fold = next(i for i, val in enumerate(first.folds) if "p3_0" in val)
    assert set(grown.folds[fold]) == {*first.folds[fold], "late"}


def test_cases_that_always_train_keep_doing_so():
    previous = Splits((("a",), ("b",)), training_only=("c",))
    grown = make_folds([case(n) for n in "abcde"], NONE, previous=previous)
    assert grown.training_only == ("c",)
    assert sorted(map(len, grown.folds)) == [2, 2]


def test_a_fold_left_empty_is_refused():
    with pytest.raises(DatasetError, match="fold 0 must have"):
        make_folds([case("b"), case("c")], NONE, previous=Splits((("a",), ("b", "c"))))


@pytest.mark.parametrize(
    "splits",
    [
        Splits((("a", "b"), ("ç",)), seed=4),
        Splits((("a",),), training_only=("b", "c")),
        Splits((("a",), ("a", "b")), training=(("b",), ("c",))),
        Splits((("a",),)),
    ],
)
def test_what_is_written_is_read(tmp_path, splits):
    write_splits(tmp_path / "splits.json", splits)
    assert read_splits(tmp_path / "splits.json") == splits
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]


def test_reads_nnunet_and_honours_its_training_lists(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]))
    splits = read_splits(path, [case(n) for n in "abcd"])
    assert (splits.train(0), splits.val(0), splits.train(1)) == (("a", "b"), ("c",), ("c",))


def test_a_case_in_no_list_always_trains(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"format": 1, "seed": 0, "folds": [{"val": ["a"]}, {"val": ["b"]}]}))
    splits = read_splits(path, [case(n) for n in "abcd"])
    assert (splits.train(0), splits.train(1)) == (("b", "c", "d"), ("a", "c", "d"))


def test_names_of_files_become_names_of_cases(tmp_path):
    for name in ("case (1)", "a+b", "c#2", "Mu\u0308ller"):
        for file in (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    folds = [["case (1)", "a+b"], ["c#2", "Mu\u0308ller"]]
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": folds[1 - k], "val": folds[k]} for k in (0, 1)]))
    splits = read_splits(path, read_dataset(tmp_path).training)
    assert splits.folds == (("case _1_", "a_b"), ("c_2", "M\u00fcller"))
    assert splits.train(0) == splits.val(1)
    assert read_splits(path).folds == splits.folds
    write_splits(tmp_path / "splits.json", splits)
    assert read_splits(tmp_path / "splits.json", read_dataset(tmp_path).training) == splits


def test_names_of_cases_are_left_alone(tmp_path):
    odd = "n" * 100 + "_0123abcd"
    write_splits(tmp_path / "splits.json", splits := Splits(((odd,), ("b",))))
    assert read_splits(tmp_path / "splits.json") == splits
    assert read_splits(tmp_path / "splits.json", [case(odd), case("b")]).folds == splits.folds


def test_two_names_of_one_case_are_refused(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text('[{"train": ["a+b", "c"], "val": ["a(b"]}]')
    for cases in (None, [case("a_b"), case("c")]):
        with pytest.raises(DatasetError, match=r"must be of another case; received a\(b and a\+b"):
            read_splits(path, cases)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"train": ["a", "x", "y"], "val": ["b"]}]', "2 unknown: x, y"),
        ('[{"train": ["a"], "val": ["b+c"]}]', "1 unknown: b\\+c"),
        ('[{"train": ["a", "b"], "val": ["b", "c"]}]', "both sides of fold 0; received b"),
        ('[{"train": ["a"], "val": ["d"]}]', "both sides of fold 0; received d, a"),
        ('[{"train": ["a"], "val": []}]', "received 1 and 0"),
        ('[{"train": ["b"], "val": ["c"]}, {"val": ["b"]}]', "every fold or none"),
        ('{"folds": []}', "folds"),
        ('{"folds": [{"train": ["a"]}]}', "val"),
        ('{"format": 2, "folds": [{"val": ["a"]}]}', "format"),
        ('"a"', "an object or a list"),
        ("[", "readable JSON"),
    ],
)
def test_faulty_files_are_refused(tmp_path, text, message):
    path = tmp_path / "splits.json"
    path.write_text(text)
    cases = [case("a", subject="p"), case("b"), case("c"), case("d", subject="p")]
    with pytest.raises(SparsegError, match=message):
        read_splits(path, cases)


def test_finds_the_file_beside_the_data(tmp_path):
    listing = tmp_path / "list.json"
    listing.write_text("{}")
    assert find_splits(tmp_path) is None
    (tmp_path / "splits_final.json").write_text("[]")
    assert find_splits(listing) == tmp_path / "splits_final.json"
    (tmp_path / "splits.json").write_text("{}")
    assert find_splits(tmp_path) == tmp_path / "splits.json"


def spreads(folds, present):
    """Largest minus smallest number of cases per fold, for each of 100 labels."""
    counts = [Counter(i for name in val for i in present[name]) for val in folds]
    return np.ptp([[count[label] for label in range(1, 101)] for count in counts], axis=0)


def test_a_thousand_cases_with_a_hundred_labels():
    rng = np.random.default_rng(0)
    cases = [case(f"c{i}") for i in range(1000)]
    shares = np.linspace(0.01, 0.9, 100)
    present = {c.name: frozenset((np.flatnonzero(rng.random(100) < shares) + 1).tolist()) for c in cases}
    splits = make_folds(cases, present)
    assert list(map(len, splits.folds)) == [200] * 5
    drawn = rng.permutation([c.name for c in cases]).reshape(5, 200)
    assert spreads(splits.folds, present)[:20].max() <= 3
    assert spreads(splits.folds, present).mean() < 0.7 * spreads(drawn, present).mean()
