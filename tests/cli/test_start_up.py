"""The command as users start it: fast help, exit codes of a process, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

# What costs more than 20 ms to import; `--help` needs none of it.
HEAVY = ("torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "matplotlib", "accelerate")

pytestmark = pytest.mark.slow


def python(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, sparseg, sparseg.cli.main; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = python("-c", code)
    assert loaded.returncode == 0, loaded.stderr
    assert set(loaded.stdout.split()).isdisjoint(HEAVY)


def test_help_and_version():
    shown = python("-m", "sparseg", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for command in ("train", "predict", "evaluate", "info", "sample", "bench"):
        assert f" {command} " in shown.stdout
    assert python("-m", "sparseg", "--version").stdout == "0.1.0\n"


def test_a_whole_process_from_good_and_bad_input(model_folder, tmp_path):
    """Exit 1 with one good case and one bad one; the library's own noise stays off both streams."""
    write_image(tmp_path / "good.nii.gz", make_phantom((12, 10, 9))[0])
    (tmp_path / "bad.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:-50])
    options = ("--model", model_folder, "--out", "out")
    done = python("-m", "sparseg", "predict", "good.nii.gz", "bad.nii.gz", *options, folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("good: out/good.nii.gz (")
    assert done.stdout.splitlines()[1:] == ["report: out/report.html"]
    assert done.stderr.startswith("error: bad.nii.gz: ")
    assert done.stderr.count("\n") == 1
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["good.nii.gz", "report", "report.html", "report.json", "statistics.json"]


def test_exit_code_of_bad_input(tmp_path):
    done = python(
        "-m", "sparseg", "predict", "gone.nii.gz", "--model", "none", "--out", "out", folder=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: none: a model folder holds")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
