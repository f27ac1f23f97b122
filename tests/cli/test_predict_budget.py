"""`sparseg predict` with limits: the line before the start, limits that are refused, threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparseg.cli.budget_options import BudgetOptions, bytes_of, plan_lines
from sparseg.errors import ConfigError
from sparseg.predict.budget import MemoryGuard, RunPlan
from sparseg.predict.estimate import Estimate
from sparseg.predict.footprint import ModelLoad
from sparseg.predict.settings import PredictSettings
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

ESTIMATE = Estimate(3, 0, (512, 512, 160), int(2.1 * 2**30), 80.0, 12 * 2**20, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6G", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        ("512MB", 512 * 10**6),
        ("1.5T", 15 * 10**11),
        ("80%", 800),
        (None, None),
    ],
)
def test_units(text: str | None, expected: int | None) -> None:
    assert bytes_of(text, "--max-ram", lambda: 1000) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1G", "0", "0%", "G", "5 apples", "x%", "nan%", "inf%"])
def test_no_limit(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-ram 80%") as caught:
        bytes_of(text, "--max-ram", lambda: 1000)
    assert caught.value.code == "memory-limit"


def test_the_line_before_the_start() -> None:
    plan = RunPlan(PredictSettings(), ESTIMATE, 4 * 2**30)
    assert plan_lines(plan, crops=False) == [
        "3 cases, largest 512 x 512 x 160: about 2.10 GiB of memory (of 4.00 GiB allowed), 1 min 20 s, "
        "12 MiB of disk"
    ]
    assert "at most 2.10 GiB" in plan_lines(plan, crops=True)[0]
    assert plan_lines(RunPlan(PredictSettings()), crops=True) == []


def test_what_is_unknown_changed_or_too_large_is_said() -> None:
    found = Estimate(1, 1, (9, 9, 9), 2**30, 80.0, 12 * 2**20, 3 * 2**30)
    lines = plan_lines(RunPlan(PredictSettings(), found, 2**29, ("one case at a time",)), crops=False)
    assert lines[0].startswith("1 case (1 of unknown size), largest 9 x 9 x 9: ")
    assert lines[0].endswith("12 MiB of disk and 3.00 GiB of temporary files")
    assert lines[1:] == [
        "warning: the largest case may need more memory than there is",
        "to save memory: one case at a time",
    ]
    config = PreprocessConfig(intensity=CTIntensity())
    guard = MemoryGuard(ModelLoad(1, 1, (1.0,), ((1, 1, 1),), 2, (0.5,)), PredictSettings(), config, 2**29)
    assert len(plan_lines(RunPlan(PredictSettings(), found, 2**29, (), guard), crops=False)) == 1


def test_a_bound_that_one_case_cannot_keep(sparseg, model_folder, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The small case is segmented, the large one refused and named in the report: exit 1."""
    for name, shape in (("small", (12, 10, 9)), ("large", (400, 320, 260))):
        write_image(tmp_path / f"{name}.nii.gz", make_phantom((12, 10, 9), seed=0)[0])
        if name == "large":
            write_large_header(tmp_path / "large.nii", shape)
            (tmp_path / "large.nii.gz").unlink()
    needed = sparseg(
        "predict",
        tmp_path / "large.nii",
        "--model",
        model_folder,
        "--out",
        tmp_path / "o",
        "--max-ram",
        "100M",
    )
    assert needed.code == 2
    assert "give --max-ram" in needed.err
    least = float(needed.err.split("give --max-ram ")[1].split("G")[0])
    outcome = sparseg(
        "predict", tmp_path / "small.nii.gz", tmp_path / "large.nii", "--model", model_folder,
        "--out", tmp_path / "out", "--max-ram", f"{least - 0.2:.1f}G",
    )  # fmt: skip
    assert outcome.code == 1
    assert outcome.err.startswith("2 cases, largest 400 x 320 x 260: at")
    assert "a case must fit into the memory allowed" in outcome.err
    assert (tmp_path / "out" / "small.nii.gz").exists()


def write_large_header(path: Path, shape: tuple[int, int, int]) -> None:
    import nibabel
    import numpy as np

    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + 2 * shape[0] * shape[1] * shape[2])


def test_gpu_memory_without_a_gpu(sparseg, model_folder, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_image(tmp_path / "a.nii.gz", make_phantom((12, 10, 9), seed=0)[0])
    outcome = sparseg(
        "predict", tmp_path / "a.nii.gz", "--model", model_folder, "--out", tmp_path / "out",
        "--max-vram", "6G", "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 2
    assert "a limit on GPU memory needs a CUDA device; received cpu; use --max-ram" in outcome.err


def test_threads() -> None:
    before = torch.get_num_threads()
    try:
        BudgetOptions(threads=before + 1).apply_threads()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ConfigError, match="--threads"):
        BudgetOptions(threads=0).apply_threads()
