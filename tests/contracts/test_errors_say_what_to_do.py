"""Every error raised on purpose carries the rule and a remedy."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from sparseg import errors

SOURCE = Path(__file__).resolve().parents[2] / "src"
NAMES = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)}


def raised_errors() -> list[tuple[str, ast.Call]]:
    return [
        (f"{path.relative_to(SOURCE)}:{node.lineno}", node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES
    ]


def test_every_error_has_a_remedy() -> None:
    calls = raised_errors()
    assert len(calls) > 80
    without = [place for place, call in calls if "remedy" not in {keyword.arg for keyword in call.keywords}]
    assert without == []
