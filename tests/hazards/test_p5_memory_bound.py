"""P5: a bound on memory holds, and what it takes to keep it is known before a case is read.

A small version of 512 x 512 x 1000 voxels under `--max-ram 4G`, which `scripts/bench_memory.py --large` runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from hazards.figures import Figure
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import save_model
from sparseg.cli.main import run
from sparseg.models.build import build_segmenter
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig

SHAPE = (192, 160, 96)
_SIZE = re.compile(r"about ([\d.]+) (GiB|MiB) of memory")
_UNITS = {"GiB": 2**30, "MiB": 2**20}


def model_folder(folder: Path) -> Path:
    """A network of 14 classes that crops and skips nothing; its windows take little."""
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", roi_size=(32, 32, 32), patch_size=(16, 16, 16), num_classes=14)
    labels = {0: "background", **{number: f"organ {number}" for number in range(1, 14)}}
    preprocess = PreprocessConfig(intensity=CTIntensity(), foreground_crop=False)
    save_model(
        folder,
        net,
        ModelCard(model=net.config, channels=("CT",), labels=labels, preprocess=preprocess, overlap=0.0),
    )
    return folder


def image_file(path: Path, shape: tuple[int, int, int]) -> Path:
    values = np.random.default_rng(0).integers(-900, 300, shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.8, 0.8, 2.5, 1.0])), path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process as Linux gives it")
def test_p5_the_bound_holds_and_the_prediction_is_true(tmp_path: Path, figure: Figure) -> None:
    """Sums of 165 MiB in a file: the peak is below the bound, near the prediction, the labels the same."""
    image = image_file(tmp_path / "case.nii", SHAPE)
    model = model_folder(tmp_path / "model")
    plain, _, needed = predict_in_a_process(image, model, tmp_path / "plain", "100%")
    bound = int(needed) - 80 * 2**20
    found, peak, predicted = predict_in_a_process(image, model, tmp_path / "bound", str(bound))
    figure("P5", "peak / bound", peak / bound, limit=1.0)
    figure("P5", "measured / predicted peak", peak / predicted, limit=1.2)
    assert peak <= bound
    assert predicted / 1.2 <= peak <= 1.2 * predicted
    assert found == plain


def predict_in_a_process(image: Path, model: Path, out: Path, max_ram: str) -> tuple[bytes, int, float]:
    """Label file, peak in bytes and predicted peak of `sparseg predict`."""
    command = [sys.executable, "-m", "sparseg", "predict", str(image), "--model", str(model)]
    command += ["--out", str(out), "--max-ram", max_ram, "--threads", "1", "--keep-empty"]
    # The peak of a child begins with that of its parent, so the measuring process must be a small one.
    code = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "_, status, usage = os.wait4(child.pid, 0)\n"
        "assert status == 0\n"
        "print(usage.ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(image.parent)},
    )
    said = _SIZE.search(done.stderr)
    assert said, done.stderr
    content = (out / "case.nii.gz").read_bytes()
    return content, int(done.stdout) * 1024, float(said[1]) * _UNITS[said[2]]


def test_p5_what_cannot_fit_is_refused_before_it_is_read(
    tmp_path: Path, figure: Figure, capsys: pytest.CaptureFixture[str]
) -> None:
    """A header of 512 x 512 x 1000 over no voxels: only the header can have been read."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((512, 512, 1000))
    header.set_sform(np.diag([0.8, 0.8, 1.0, 1.0]), code=1)
    header.set_zooms((0.8, 0.8, 1.0))
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "huge.nii"
    with path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + 2 * 512 * 512 * 1000)  # a hole: no block of it is on the disk
    out = tmp_path / "out"
    code = run(
        [
            "predict",
            str(path),
            "--model",
            str(model_folder(tmp_path / "model")),
            "--out",
            str(out),
            "--max-ram",
            "1G",
        ]
    )
    said = capsys.readouterr().err
    refused = code == 2 and "512 x 512 x 1000 voxels that take up to" in said and not out.exists()
    figure("P5", "read though they cannot fit", 0 if refused else 1, of=1)
    assert refused, said
    assert re.search(r"give --max-ram [23]\.\dG or more", said)
