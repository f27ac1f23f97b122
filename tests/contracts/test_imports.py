"""Who may import whom: folders have ranks, imports go downwards, and nothing heavy comes by itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparseg

ROOT = Path(sparseg.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
RANKS = {
    "errors": 0, "shapes": 0, "config": 0, "optional": 0, "allocator": 0,
    "volumes": 1, "layers": 1, "metrics": 1,
    "preprocessing": 2, "windows": 2, "tokens": 2,
    "models": 3, "datasets": 3,
    "checkpoints": 4,
    "predict": 5, "training": 5,
    "evaluation": 6, "benchmark": 6, "export": 6, "viewer": 6,
    "planning": 6, "crossval": 6,
    "compare": 7,
    "cli": 8, "__main__": 9,
}  # fmt: skip


def module_name(file: Path) -> str:
    parts = ("sparseg", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file) for file in FILES}


def imports(text: str, package: str) -> Iterator[str]:
    """Modules of sparseg that a file of `package` imports anywhere, within functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sparseg")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            if base.split(".")[0] == "sparseg":
                full = [f"{base}.{alias.name}" for alias in node.names]
                yield from (name if name in MODULES else base for name in full)


def imports_of(file: Path) -> list[str]:
    name = module_name(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return sorted(set(imports(file.read_text(encoding="utf-8"), package)))


def part(module: str) -> str:
    """The folder (or single file) of the package that a module belongs to; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


GRAPH = {module_name(file): imports_of(file) for file in FILES}


def test_every_kind_of_import_is_seen() -> None:
    text = """
import os, sparseg.errors
from sparseg.cli import main
from . import config
from ..tokens.score import ScorePredictor
def f():
    from sparseg.volumes import io
    import torch
"""
    assert list(imports(text, "sparseg.models")) == [
        "sparseg.errors",
        "sparseg.cli.main",
        "sparseg.models.config",
        "sparseg.tokens.score",
        "sparseg.volumes.io",
    ]
    assert sum(len(targets) for targets in GRAPH.values()) > 100


def test_every_folder_has_a_rank() -> None:
    assert {part(module) for module in MODULES if part(module)} <= RANKS.keys()


def test_imports_go_to_lower_ranks_only() -> None:
    wrong = []
    for module, targets in GRAPH.items():
        own = part(module)
        for target in targets:
            other = part(target)
            # The package itself is the lazy public face; from within only its version is of use.
            if not own or not other or own == other:
                continue
            if RANKS[other] >= RANKS[own] and not RANKS[own] == RANKS[other] == 0:
                wrong.append(f"{module} -> {target}")
    assert wrong == []


def test_there_are_no_circles() -> None:
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            pytest.fail(" -> ".join([*path[path.index(module) :], module]))
        if module in done:
            return
        for target in GRAPH.get(module, []):
            if target != "sparseg":
                visit(target, [*path, module])
        done.add(module)

    for module in GRAPH:
        if module != "sparseg":
            visit(module, [])


def test_training_and_predict_meet_only_below() -> None:
    """`models` never see a file or an affine, `windows` and `preprocessing` no model."""
    forbidden = {
        "models": {"volumes", "preprocessing"},
        "windows": {"models", "tokens", "layers"},
        "preprocessing": {"models", "tokens", "layers"},
        "training": {"predict"},
        "viewer": {"models", "training"},
    }
    wrong = [
        f"{module} -> {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if part(target) in forbidden.get(part(module), set())
    ]
    assert wrong == []


def loaded_after(code: str) -> set[str]:
    text = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_sparseg_loads_nothing_heavy() -> None:
    loaded = loaded_after("import sparseg\nsparseg.__version__\nsparseg.SparsegError")
    assert "sparseg" in loaded
    assert not loaded & {"torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "matplotlib"}
