"""The main job on real input, end to end: what `make demo` runs. Everything it writes lies in demo/."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo")
DATASET, PREDICTIONS, RUN = OUT / "ct", OUT / "predictions", OUT / "run"
MODEL = Path("models/sample_ct")


def main() -> None:
    """Fetch, predict, evaluate, draw, measure, train."""
    began = time.monotonic()
    OUT.mkdir(exist_ok=True)
    sparseg("sample", "fetch", "ct", "--to", DATASET)
    sparseg("check", DATASET, "--out", OUT / "check")
    sparseg("plan", DATASET, "--out", OUT / "plan.yaml", "--no-measure", "--force")
    sparseg("info", MODEL)
    sparseg("predict", DATASET / "imagesTs" / "ct_c", "--model", MODEL, "--out", PREDICTIONS)
    metrics = OUT / "metrics.json"
    references = DATASET / "labelsTs"
    sparseg("evaluate", "--pred", PREDICTIONS, "--ref", references, "--labels", DATASET, "--out", metrics)
    check_grid()
    draw()
    rivals = ("--variants", "sparse", "fast", "dense_p8", "dense_p16_monai")
    bench = ("--preset", "vit_tiny_p8", "--modes", "inference", "--json", OUT / "bench.json")
    sparseg("bench", "model", *bench, *rivals)
    say(quality_line(metrics))
    shutil.rmtree(RUN, ignore_errors=True)
    recipe = "recipes/sample_ct.yaml"
    sparseg("train", DATASET, "--config", recipe, "--out", RUN, "--max-minutes", "1")
    say(
        f"\nDone in {time.monotonic() - began:.0f} s. Look at:\n"
        f"  {PREDICTIONS / 'ct_c.nii.gz'}  labels on the grid of the DICOM series\n"
        f"  {OUT / 'overview.png'}  the same as a picture, beside the reference\n"
        f"  {OUT / 'tokens.png'}  the patches that the transformer saw\n"
        f"  {metrics}, {OUT / 'bench.json'}, {RUN / 'progress.png'}\n"
        f"  {OUT / 'check/check.html'}, {OUT / 'plan.yaml'}  what the dataset holds and suggests"
    )


def check_grid() -> None:
    """The label file lies on the grid of the DICOM series, in millimetres."""
    import nibabel as nib
    import numpy as np

    from sparseg.volumes.io import read_volume

    image = read_volume(DATASET / "imagesTs" / "ct_c")
    written = nib.load(PREDICTIONS / "ct_c.nii.gz")
    difference = float(np.abs(written.affine - image.affine).max())
    if written.shape != image.shape or difference > 1e-4:
        sys.exit(f"the label file is not on the grid of the series: {written.shape}, {difference} mm")
    say(f"the label file lies on the grid of the DICOM series: {written.shape}, {difference:.1e} mm apart")


def draw() -> None:
    """Picture of prediction beside reference, and of the patches kept (yellow)."""
    from sparseg.datasets.read import read_dataset
    from sparseg.viewer.overview import draw_overview
    from sparseg.viewer.report_pictures import draw_case
    from sparseg.viewer.report_volumes import read_previews
    from sparseg.volumes.io import read_labels, read_volume

    columns = {
        "prediction": read_labels(PREDICTIONS / "ct_c.nii.gz"),
        "reference (silver)": read_labels(DATASET / "labelsTs" / "ct_c.nii.gz"),
    }
    image = read_volume(DATASET / "imagesTs" / "ct_c")
    names = read_dataset(DATASET).labels
    draw_overview(OUT / "overview.png", image, columns, names, window=(-160, 240))
    files = {
        kind: PREDICTIONS / "report" / "ct_c" / f"{kind}.nii.gz" for kind in ("image", "labels", "tokens")
    }
    previews, _ = read_previews(files)
    pictures, _ = draw_case(previews, {}, num_stages=1)
    (OUT / "tokens.png").write_bytes(pictures["tokens"][0].png)


def quality_line(metrics: Path) -> str:
    """The quality number that stands beside the speed."""
    liver = next(row for row in json.loads(metrics.read_text())["classes"] if row["name"] == "liver")
    return (
        "The table above times untrained networks of the vit_tiny_p8 size. The sample model, a smaller\n"
        f"one of the fast kind, has liver Dice {liver['dice']:.3f} on this patient, who was not trained\n"
        "on (silver labels)."
    )


def sparseg(*arguments: object) -> None:
    """Run one command and show it."""
    words = [str(argument) for argument in arguments]
    say(f"\n$ sparseg {' '.join(words)}")
    code = subprocess.run([sys.executable, "-m", "sparseg", *words], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"the command above ended with exit code {code}")


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
