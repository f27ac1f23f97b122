"""The table of error codes for users is that of the source."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "hazards.md"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("error_reference", ROOT / "scripts/error_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(reference: ModuleType) -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.render(), "run scripts/error_reference.py"


def test_no_code_of_the_source_is_missed(reference: ModuleType) -> None:
    """Every literal `code=`, found here in the simplest way, and every code that the N and D rows expect."""
    listed = set(re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    literal = {
        keyword.value.value
        for path in (ROOT / "src").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in reference.KINDS
        for keyword in call.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }
    assert len(literal) > 100
    assert literal - listed == set()
    tested = {
        code
        for path in (ROOT / "tests/hazards").glob("test_[nd]*.py")
        for code in re.findall(
            r'"((?:nifti|dicom|file|archive)-[a-z0-9-]+)"', path.read_text(encoding="utf-8")
        )
    }
    assert len(tested) > 40
    assert tested - listed == set()
