"""A setting and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """What a rule decided.

    Attributes:
        value: The setting.
        why: One sentence with the numbers it was decided by.
    """

    value: Value
    why: str


def numbers(values: tuple[float, ...] | tuple[int, ...], separator: str = " x ") -> str:
    """Short text of a tuple: `1.5 x 1.5 x 2`."""
    return separator.join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
