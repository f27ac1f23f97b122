"""Files and functions that a reader can hold in mind."""

from __future__ import annotations

import ast
from pathlib import Path

import sparseg

ROOT = Path(sparseg.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 450, 80


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_files_are_short() -> None:
    lengths = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}


def test_functions_are_short() -> None:
    long = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert len(long) > 200
    assert {name: length for name, length in long.items() if length > MAX_FUNCTION} == {}


def test_functions_have_names_and_docstrings_where_they_are_public() -> None:
    silent = [
        name
        for name, node in functions()
        if not node.name.startswith("_") and node.col_offset == 0 and ast.get_docstring(node) is None
    ]
    assert silent == []


def test_every_file_says_what_it_is() -> None:
    assert [
        str(f.relative_to(ROOT)) for f in FILES if ast.get_docstring(ast.parse(f.read_text("utf-8"))) is None
    ] == []
