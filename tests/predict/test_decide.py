"""From logits to ids."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from predict.threshold_model import BRATS
from sparseg.predict.decide import largest_class, make_background_test, make_decision, paint_order


def test_classes_by_argmax():
    logits = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(make_decision(range(4), {})(logits).long(), logits.argmax(dim=0))


@pytest.mark.parametrize("num_classes", [1, 2, 14, 256, 300])
def test_largest_class_is_the_argmax_and_the_first_of_equal_ones(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    # Few different values, so that most places have several largest ones.
    logits = torch.randint(-3, 3, (num_classes, 7, 6, 5), generator=generator).float()
    classes = largest_class(logits)
    values = logits.amax(dim=0)
    expected = (logits == values).int().argmax(dim=0)
    assert torch.equal(classes.long(), expected)


def test_background_is_sure_only_with_a_lead_that_interpolation_leaves():
    logits = torch.tensor([[100.0, 100.0, 100.0, 0.0], [0.0, 99.9999, 100.0, 1.0], [-5.0, 1.0, 0.0, 0.0]])
    sure = make_background_test((0, 3, 7), {})
    assert sure is not None
    assert sure(logits.reshape(3, 4, 1, 1)).flatten().tolist() == [True, False, False, False]


def test_regions_are_surely_absent_where_none_is_positive():
    sure = make_background_test((0, 1, 2), {"a": (1, 2), "b": (2,)})
    assert sure is not None
    logits = torch.tensor([[-1.0, 0.0, 1e-3, -1.0], [-2.0, 0.0, -1.0, 0.5]]).reshape(2, 4, 1, 1)
    assert sure(logits).flatten().tolist() == [True, True, False, False]


def test_a_model_without_background_has_none_that_is_sure():
    assert make_background_test((1, 2), {}) is None


def test_brats_regions_give_the_innermost_id():
    # Every combination of present and absent, one voxel each.
    present = torch.tensor(list(product((False, True), repeat=3))).T
    logits = torch.where(present, 0.1, -0.1).reshape(3, 8, 1, 1)
    ids = make_decision((0, 1, 2, 4), BRATS)(logits).flatten().tolist()
    whole, core, enhancing = present.tolist()
    expected = [3 if e else 2 if c else 1 if w else 0 for w, c, e in zip(whole, core, enhancing, strict=True)]
    assert ids == expected


def test_a_logit_of_zero_is_absent():
    assert make_decision((0, 1), {"a": (1,)})(torch.zeros(1, 2, 2, 2)).sum() == 0


@pytest.mark.parametrize(
    ("regions", "order"),
    [
        (BRATS, [(0, 1), (1, 2), (2, 3)]),
        # The order of the channels is the dataset's, that of painting is by size.
        ({"enhancing": (3,), "core": (2, 3), "whole": (1, 2, 3)}, [(2, 1), (1, 2), (0, 3)]),
        ({"kidney": (2,), "liver": (1,)}, [(0, 2), (1, 1)]),
        ({"one": (1, 2), "same": (1, 2)}, [(0, 1), (1, 1)]),
        # Two parts fill the whole, which has no id of its own left.
        ({"organ": (4, 7), "part": (4,), "rest": (7,)}, [(0, 4), (1, 4), (2, 7)]),
    ],
    ids=["brats", "reversed", "disjoint", "identical", "filled"],
)
def test_paint_order(regions, order):
    assert paint_order(regions) == order


def test_disjoint_regions_do_not_disturb_each_other():
    logits = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]]).reshape(2, 3, 1, 1)
    assert make_decision((0, 2, 5), {"kidney": (2,), "liver": (5,)})(logits).flatten().tolist() == [2, 5, 0]


def test_ids_with_gaps_are_given_back():
    logits = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]).reshape(3, 3, 1, 1)
    assert make_decision((41, 0, 7), {})(logits).flatten().tolist() == [7, 0, 41]
