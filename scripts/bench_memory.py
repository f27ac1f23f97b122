"""Predicted against real peak memory of `sparseg predict`, each run in a fresh process.

    python scripts/bench_memory.py --json benchmarks/2026-11-22-predict-memory.json

The image is noise over the whole field, smooth where it is a DICOM series, so that nothing is cropped or
skipped; the network is tiny, so that the files around it count. The peak is what the system reports for the
process when it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

_SIZE = re.compile(r"(?:about|at most) ([\d.]+) (GiB|MiB|KiB) of memory .*? allowed\), ([^,]+),")
_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_SPACING = (0.8, 0.8, 2.5)
_MODEL_CODE = """
import sys, torch
from pathlib import Path
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import save_model
from sparseg.models.build import build_segmenter
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
torch.manual_seed(0)
folder, spacing, classes = Path(sys.argv[1]), eval(sys.argv[2]), int(sys.argv[3])
net = build_segmenter("test_tiny", roi_size=(64, 64, 64), patch_size=(16, 16, 16), num_classes=classes)
labels = {0: "background", **{number: f"organ {number}" for number in range(1, classes)}}
preprocess = PreprocessConfig(intensity=CTIntensity(), spacing=spacing, foreground_crop=False)
card = ModelCard(model=net.config, channels=("CT",), labels=labels, preprocess=preprocess, overlap=0.0)
save_model(folder, net, card)
"""
_IMAGE_CODE = """
import sys, numpy as np, nibabel
shape, dtype, spacing = eval(sys.argv[2]), sys.argv[3], eval(sys.argv[4])
array = np.random.default_rng(0).integers(-1000, 300, shape, dtype=np.int16).astype(dtype)
nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), sys.argv[1])
"""
# Smooth, so that a network of any weights gives regions with outlines, not noise.
_SERIES_CODE = """
import sys, numpy as np
from pathlib import Path
from sparseg.datasets.synth.deform import smooth_noise
from sparseg.datasets.writers.dicom_series import Identity, make_series
from sparseg.volumes.volume import Volume
folder, shape, spacing = Path(sys.argv[1]), eval(sys.argv[2]), eval(sys.argv[4])
array = 150 * smooth_noise(np.random.default_rng(0), shape, 16.0, shape)
image = Volume(np.rint(array)[None].astype(np.int16), np.diag([*spacing, 1.0]))
folder.mkdir()
for number, slice in enumerate(make_series(image, Identity("bench", "case", "case", "CT", True, "noise"))):
    slice.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
"""
SERIES = "_series"


@dataclass(frozen=True)
class Setting:
    """One run: image, model spacing in mm, options."""

    shape: tuple[int, int, int]
    suffix: str = ".nii.gz"
    dtype: str = "int16"
    spacing: tuple[float, float, float] | None = None
    options: tuple[str, ...] = ()
    num_cases: int = 1


SETTINGS = (
    Setting((64, 64, 64)),
    Setting((128, 128, 128), ".nii"),
    Setting((256, 256, 128), ".nii.gz", "float32"),
    Setting((256, 256, 128), ".nii", "float32", (1.5, 1.5, 2.0)),
    Setting((256, 256, 128), options=("--format", "seg.nrrd")),
    Setting((256, 256, 128), options=("--largest-component", "all")),
    Setting((256, 256, 128), num_cases=3),
    Setting((256, 256, 128), options=("--max-ram", "1G"), num_cases=3),
    Setting((256, 256, 128), options=("--batch-size", "4")),
    Setting((512, 512, 160), ".nii.gz", "int16", (1.5, 1.5, 2.0)),
    Setting((512, 512, 160), ".nii.gz", "int16", (1.5, 1.5, 2.0), ("--max-ram", "1400M")),
    Setting((512, 512, 160), ".nii", "float32"),
    Setting((512, 512, 160), ".nii", "int16", None, ("--max-ram", "2G")),
    Setting((256, 256, 128), SERIES, options=("--format", "dicom-seg")),
    Setting((256, 256, 128), SERIES, options=("--format", "dicom-seg", "--labelmap")),
    Setting((512, 512, 160), SERIES, spacing=(1.5, 1.5, 2.0), options=("--format", "dicom-seg")),
)
LARGE = Setting((512, 512, 1000), ".nii.gz", "int16", None, ("--max-ram", "4G"))


def main() -> None:
    """Run all settings and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--large", action="store_true", help="only 512 x 512 x 1000 with --max-ram 4G")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of settings")
    arguments = parser.parse_args()
    settings = [LARGE] if arguments.large else list(SETTINGS)
    if arguments.only:
        settings = [SETTINGS[number] for number in arguments.only]
    for setting in settings:
        with tempfile.TemporaryDirectory() as name:
            row = run(setting, Path(name))
        sys.stdout.write(f"{json.dumps(row)}\n")
        sys.stdout.flush()
        if arguments.json:
            keep(row, arguments.json)


def keep(row: dict[str, object], path: Path) -> None:
    """Put a row into the file, in place of an older one of the same setting."""
    known = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = [other for other in known["rows"] if other["setting"] != row["setting"]]
    path.write_text(json.dumps({**known, **header(), "rows": [*rows, row]}, indent=2) + "\n")


def header() -> dict[str, object]:
    """What all rows have in common."""
    return {
        "benchmark": "predict memory",
        "model": "test_tiny, roi 64, patch 16, 14 classes, overlap 0, 1 thread",
        "peak": "ru_maxrss of a fresh process of the command line",
    }


def run(setting: Setting, folder: Path) -> dict[str, object]:
    """Make image and model in processes of their own, then measure one prediction."""
    model = folder / f"model_{setting.spacing}".replace(" ", "")
    if not model.exists():
        _python(_MODEL_CODE, model, setting.spacing, 14)
    images = []
    for number in range(setting.num_cases):
        size = "x".join(map(str, setting.shape))
        images.append(folder / f"case{number}_{size}_{setting.dtype}{setting.suffix}")
        if not images[-1].exists():
            code = _SERIES_CODE if setting.suffix == SERIES else _IMAGE_CODE
            _python(code, images[-1], setting.shape, setting.dtype, _SPACING)
    command = [str(Path(sys.executable).with_name("sparseg")), "predict", *map(str, images)]
    command += ["--model", str(model), "--out", str(folder / "out"), "--threads", "1", "--keep-empty"]
    command += setting.options
    if "--max-ram" not in setting.options and max(setting.shape) <= 128:
        command += ["--max-ram", "100%"]  # so few windows would not be looked at otherwise
    errors = folder / "errors.txt"
    start = time.monotonic()
    with errors.open("w") as file:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - start
    said = errors.read_text()
    found = _SIZE.search(said)
    code = os.waitstatus_to_exitcode(status)
    if code or not found:
        sys.exit(f"exit code {code}: {said}")
    predicted = float(found[1]) * _UNITS[found[2]]
    measured = usage.ru_maxrss * 1024
    commit = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip(),
        "setting": json.loads(json.dumps(asdict(setting))),
        "exit_code": code,
        "predicted_bytes": int(predicted),
        "peak_bytes": measured,
        "measured_over_predicted": round(measured / predicted, 3),
        "predicted_time": found[3],
        "seconds": round(seconds, 1),
        "changes": said.partition("to save memory: ")[2].partition("\n")[0],
    }


def _python(code: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
