"""`plan.yaml`: settings with their reasons as comments, and a seal that tells whether it was edited."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparseg.config import dump_yaml

_SEAL = "# unedited: "
_WIDTH = 100


def settings_lines(settings: Mapping[str, Any], why: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    """YAML lines of `settings`, above each key its reason.

    Args:
        settings: Nested mappings; leaves are scalars or lists.
        why: Dotted key -> reason.
        prefix: Dotted key of the mapping that `settings` is, with a dot behind it; empty at the top.
    """
    indent = "  " * prefix.count(".")
    for key, value in settings.items():
        if not prefix:
            yield ""
        yield from comment(why.get(prefix + key, ""), indent)
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from settings_lines(value, why, f"{prefix}{key}.")
        else:
            yield f"{indent}{key}: {_inline(value)}"


def comment(text: str, indent: str = "") -> list[str]:
    """Comment lines of at most 100 characters."""
    # What a dataset names its labels must not end the comment.
    start = f"{indent}# "
    return textwrap.wrap(
        " ".join(text.split()), _WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False
    )


def listing(title: str, lines: Sequence[str]) -> list[str]:
    """A block of comments with a title; nothing without lines."""
    if not lines:
        return []
    items = [part for line in lines for part in _item(line)]
    return ["", f"# {title}", *items]


def seal(lines: Sequence[str]) -> str:
    """The file's text, its first line holding the hash of all others."""
    body = "\n".join(lines).rstrip() + "\n"
    return f"{_SEAL}{_hash(body)}\n{body}"


def is_unedited(text: str) -> bool:
    """Whether a file is as it was written; other line ends do not count as an edit."""
    first, _, body = "\n".join(text.splitlines()).partition("\n")
    return first == f"{_SEAL}{_hash(body.rstrip() + chr(10))}"


def _item(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent="# - ",
        subsequent_indent="#   ",
        break_long_words=False,
    )


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _inline(value: Any) -> str:
    """One value on one line, as YAML reads it back."""
    text = dump_yaml([value], default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.strip()[1:-1]
