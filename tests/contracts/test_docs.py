"""The documentation is true: Python blocks run, the configuration reference is current, named files exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def runnable_blocks() -> list[tuple[str, str]]:
    """Blocks that need nothing but the package; those that read a user's file are compiled only."""
    return [(page.name, code) for page in PAGES for code in BLOCK.findall(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), runnable_blocks())
def test_python_blocks_run(page: str, code: str) -> None:
    compile(code, page, "exec")
    if "scan.nii.gz" in code:
        return
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr


def load_script(name: str) -> ModuleType:
    """A file of the folder scripts as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_configuration_reference_is_current() -> None:
    module = load_script("config_reference")
    assert (ROOT / "docs/reference/configuration.md").read_text() == module.render(), (
        "run scripts/config_reference.py"
    )


def test_tables_of_figures_say_what_their_rows_say() -> None:
    module = load_script("readme_tables")
    found = 0
    for name in module.PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert module.with_tables(text) == text, "run scripts/readme_tables.py"
        found += text.count("<!-- table ")
    assert found >= 4
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module.with_tables(text.replace("| 55.3 |", "| 5.53 |")) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_every_python_block_is_found() -> None:
    """Guards the tests above against a pattern that silently matches nothing."""
    assert len(runnable_blocks()) == sum(page.read_text().count("```python") for page in PAGES) > 2
