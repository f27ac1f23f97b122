"""The output folder of a prediction about one asymmetric patient, made to the contract of `predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from predict.grids import stored_as
from sparseg.predict.outputs import write_labels
from sparseg.predict.preview import Preview, write_previews
from sparseg.viewer.report_data import Colour
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.volume import Volume

NAMES = {0: "background", 1: "liver", 2: "spleen"}
COLOURS: dict[int, Colour] = {1: (255, 0, 0), 2: (0, 0, 255)}
SPACING = (1.5, 1.0, 2.5)
SHAPE = (24, 28, 20)
# In voxels of a RAS grid, where the first index grows to the patient's right: the liver lies right, in front
# and above; the spleen left, behind and below. They meet in no plane but through the liver's middle.
LIVER = (slice(15, 21), slice(16, 24), slice(12, 18))
SPLEEN = (slice(3, 6), slice(4, 7), slice(2, 5))
# One bright voxel inside the liver.
SPOT = (19, 21, 16)
PATCH = 4
SECONDS = {
    "read": 1.0,
    "prepare": 0.5,
    "windows": 6.0,
    "encode": 2.0,
    "assemble": 1.0,
    "decode": 2.5,
    "stitch": 0.5,
    "finish": 1.5,
    "statistics": 0.5,
    "write": 0.5,
}


def ras_affine() -> np.ndarray:
    """Voxel -> mm of the phantom."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-20.0, -15.0, -10.0)
    return affine


def spot_mm() -> np.ndarray:
    """World position of the bright voxel."""
    return voxel_to_world(ras_affine(), np.array(SPOT, float))


def phantom() -> dict[str, Volume]:
    """Image, labels, tokens and confidence `[1,H,W,D]`, tokens on a grid of patches."""
    labels = np.zeros((1, *SHAPE), np.uint8)
    labels[(0, *LIVER)], labels[(0, *SPLEEN)] = 1, 2
    image = np.full((1, *SHAPE), 40, np.uint8)
    image[0, 2:-2, 2:-2, 2:-2] = 90
    image[(0, *SPOT)] = 255
    confidence = np.full((1, *SHAPE), 250, np.uint8)
    confidence[(0, *LIVER)] = 100
    # Pruned at stage 1 on the left, 2 on the right; the right, front, upper eighth is kept, its first patch
    # pruned at stage 3, and the lowest layer was never run.
    tokens = np.ones((1, *(size // PATCH for size in SHAPE)), np.uint8)
    tokens[0, 3:] = 2
    tokens[0, 3:, 4:, 2:] = 4
    tokens[0, 3, 4, 2] = 3
    tokens[0, :, :, 0] = 0
    affine = ras_affine()
    patches = affine.copy()
    patches[:3, 3] += affine[:3, :3] @ np.full(3, (PATCH - 1) / 2)
    patches[:3, :3] *= PATCH
    return {
        "image": Volume(image, affine),
        "labels": Volume(labels, affine),
        "confidence": Volume(confidence, affine),
        "tokens": Volume(tokens, patches),
    }


def as_stored(order: tuple[int, int, int], signs: tuple[int, int, int]) -> dict[str, Volume]:
    """The phantom as a file of another orientation gives it; tokens and confidence stay as the model's."""
    volumes = phantom()
    return volumes | {kind: stored_as(volumes[kind], order, signs) for kind in ("image", "labels")}


def write_case(out: Path, name: str = "patient", volumes: dict[str, Volume] | None = None) -> dict[str, Any]:
    """Write label file and previews of a case; return its row."""
    volumes = volumes or phantom()
    labels = volumes["labels"]
    write_labels(out / f"{name}.nii.gz", labels.array[0], labels.affine, NAMES)
    previews = {kind: Preview(volume.array[0], volume.affine) for kind, volume in volumes.items()}
    files = write_previews(out / "report" / name, previews)
    return {
        "case": name,
        "status": "ok",
        "output": f"{name}.nii.gz",
        "models": [{"keep_ratios": [0.75], "token_counts": [64, 48, 40, 36]}],
        "num_windows": 18,
        "num_windows_skipped": 7,
        "seconds": SECONDS,
        "volumes_ml": {"liver": 1.08, "spleen": 0.101, "gallbladder": 0.0},
        "previews": {kind: f"report/{name}/{file}" for kind, file in files.items()},
    }


def write_run(out: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """Write report.json and statistics.json."""
    report = {
        "schema": 1,
        "created": "2026-11-22T14:10:00+00:00",
        "versions": {"sparseg": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "device": "cpu",
        "threads": 1,
        "token_counts": [64, 32, 16, 8],
        "models": [{"model": "models/tiny", "weights_sha256": "ab" * 32, "token_counts": [64, 32, 16, 8]}],
        "mirror": [],
        "keep_empty": False,
        "reading": {"affine_choice": "refuse", "nonfinite": None},
        "cleanup": {"largest_component": ["liver"], "fill_holes": [], "min_ml": 0.0},
        "labels": {str(label): name for label, name in NAMES.items()},
        "colours": {str(label): colour for label, colour in COLOURS.items()},
        "cases": rows,
        "later": "unknown to this version",
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report | changes))
    numbers = {
        "label": 1,
        "voxels": 288,
        "volume_ml": 1.08,
        "centroid_mm": [6.25, 4.5, 26.25],
        "box_vox": None,
        "touches_border": True,
        "mean_confidence": 0.39,
    }
    statistics = {row["case"]: {"liver": numbers} for row in rows if row["status"] == "ok"}
    (out / "statistics.json").write_text(json.dumps({"cases": statistics}))
    return out


FAILED = {
    "case": "broken",
    "status": "error",
    "code": "truncated",
    "message": "broken.nii.gz: the file must be complete; received 12 bytes",
}
