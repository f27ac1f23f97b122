"""Rows N10 and N11 from file to file: images without contrast, and images smaller than a window."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from predict.threshold_model import classify, save_tiny_model
from sparseg.cli.main import run
from sparseg.models.segmenter import SparseUNETR

from .figures import Figure
from .nifti_faults import base_affine, nifti_bytes, save

CONSTANT = {"zeros": np.zeros((12, 14, 10), "f4"), "seven": np.full((12, 14, 10), 7, "f4")}
SHAPES = [(3, 3, 3), (24, 28, 1), (1, 1, 1), (64, 64, 3)]
LARGE = pytest.param((512, 512, 3), marks=pytest.mark.slow)


def predicted(tmp_path: Path, array: np.ndarray, *options: str) -> tuple[nib.Nifti1Image, dict[str, object]]:
    """Predict one file from the command line; labels and the numbers of `statistics.json`."""
    model = save_tiny_model(tmp_path / "model")
    path = save(tmp_path / "a.nii.gz", nifti_bytes(array))
    out = tmp_path / "out"
    arguments = [str(path), "--model", str(model), "--out", str(out), "--device", "cpu", *options]
    assert run(["predict", *arguments]) == 0
    # JSON has no NaN: a number that is none would have to be one of these words.
    text = (out / "statistics.json").read_text()
    assert not {"NaN", "Infinity", "-Infinity"} & set(text.replace(",", " ").split())
    return nib.load(out / "a.nii.gz"), json.loads(text)["cases"]["a"]


def warnings_of(tmp_path: Path) -> list[dict[str, str]]:
    """What the row of the case in `predicted` warns of."""
    row = json.loads((tmp_path / "out" / "report.json").read_text())["cases"][0]
    return list(row["warnings"])


def finite(value: object) -> bool:
    """Whether all numbers in a structure of JSON are."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.hazard("N10", "no result, or numbers that are not finite")
@pytest.mark.parametrize("more", [(), ("--keep-empty",)])
@pytest.mark.parametrize("kind", CONSTANT)
def test_n10_constant_image_gives_a_finite_result_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, more: tuple[str, ...]
) -> None:
    labels, numbers = predicted(tmp_path, CONSTANT[kind], *more)
    values = np.asarray(labels.dataobj)
    assert values.shape == (12, 14, 10)
    assert set(np.unique(values)) <= {0, 1, 2}
    assert set(numbers) == {"liver", "tumor"}
    assert finite(numbers)
    (warning,) = warnings_of(tmp_path)
    assert warning["code"] == "image-constant"
    assert f"{CONSTANT[kind].max():g} everywhere" in warning["message"]
    assert "[image-constant]" in capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<code>image-constant</code>" in page


@pytest.mark.parametrize("shape", [*SHAPES, LARGE])
def test_n11_labels_of_the_same_shape_and_right(
    tmp_path: Path, figure: Figure, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    """Classes 1 and 2 in turns, each in blocks, so that a shift or a wrong padding shows."""
    monkeypatch.setattr(SparseUNETR, "forward", classify)
    blocks = sum(np.indices(shape) // 3) % 2 + 1
    labels, _ = predicted(tmp_path, (100 * blocks).astype("f4"), "--overlap", "0")
    found = np.asarray(labels.dataobj)
    figure("N11", "images whose labels differ in shape, place or value", int(not same(labels, blocks)), of=1)
    assert found.shape == shape
    np.testing.assert_array_equal(found, blocks)
    np.testing.assert_allclose(labels.affine, base_affine(), atol=1e-5)


def same(labels: nib.Nifti1Image, blocks: np.ndarray) -> bool:
    placed = np.allclose(labels.affine, base_affine(), atol=1e-5)
    return bool(placed and np.array_equal(np.asarray(labels.dataobj), blocks))
