"""Errors: one line, with rule, value and remedy; the tree callers can rely on."""

from __future__ import annotations

import pytest

from sparseg import errors
from sparseg.errors import ConfigError, MissingExtraError, NumericsError, ShapeError, SparsegError


def test_message_is_one_line_of_where_rule_value_remedy() -> None:
    error = ConfigError("must be\npositive", received=-1, remedy="set it\nto 1", where="lr")
    assert str(error) == "lr: must be positive; received -1; set it to 1"
    assert (error.rule, error.received, error.remedy, error.where) == (
        "must be\npositive",
        -1,
        "set it\nto 1",
        "lr",
    )


def test_absent_parts_leave_no_trace() -> None:
    assert str(SparsegError("rule")) == "rule"
    assert str(SparsegError("rule", received=0)) == "rule; received 0"


def test_code_defaults_to_the_class_and_can_be_set() -> None:
    assert ShapeError("x").code == "ShapeError"
    assert ShapeError("x", code="too-small").code == "too-small"


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (ShapeError, (errors.InputError, ValueError)),
        (ConfigError, (errors.InputError, ValueError)),
        (MissingExtraError, (SparsegError, ImportError)),
        (errors.CheckpointError, (errors.InputError,)),
    ],
)
def test_children_are_caught_as_what_they_are(kind: type[SparsegError], bases: tuple[type, ...]) -> None:
    assert all(issubclass(kind, base) for base in bases)


def test_numerics_is_not_the_users_input() -> None:
    assert not issubclass(NumericsError, errors.InputError)


def test_tree_in_the_docstring_names_every_class() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert len(classes) >= 12
    assert errors.__doc__ is not None
    assert {name for name in classes if name not in errors.__doc__} == set()
