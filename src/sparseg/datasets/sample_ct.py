"""The CT sample: two patients, laid out as a Decathlon dataset."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import numpy as np

from sparseg.datasets import sample_manifest as manifest
from sparseg.errors import FetchError, GeometryError
from sparseg.preprocessing.orientation import ras_axes, reorient, reorient_affine, undo_reorient
from sparseg.volumes.geometry import corner_distance_mm, require_same_grid
from sparseg.volumes.io import read_labels, read_volume
from sparseg.volumes.nifti_writer import write_label_map
from sparseg.volumes.volume import Volume

SOURCE = manifest.SOURCE
LABELS = {0: "background", **{i: name for i, (_, _, name) in enumerate(manifest.ORGANS, start=1)}}
MAX_SHIFT_MM = 1e-4
PROVENANCE = (
    f"Images and labels come from the source archive of the Python package {manifest.PACKAGE} "
    f"{manifest.VERSION} (Apache-2.0, see LICENSE). The labels are silver: another model's output, not an "
    "expert's work. Ids were renumbered and the labels of ct_c flipped onto the grid of its DICOM series; "
    "voxels were not resampled."
)


def build(root: Path, members: dict[str, bytes]) -> dict[str, object]:
    """Write images and labels into `root` and return the description without hashes."""
    _check_class_map(members[manifest.CLASS_MAP])
    raw = root / "raw"
    for folder in ("imagesTr", "labelsTr", "imagesTs/ct_c", "labelsTs", "raw"):
        (root / folder).mkdir(parents=True)
    (root / "LICENSE").write_bytes(members[manifest.LICENSE])
    (root / "imagesTr/ct_a.nii.gz").write_bytes(members[manifest.CT_A_IMAGE])
    for name, content in members.items():
        if name.startswith(manifest.CT_C_FOLDER):
            (root / "imagesTs/ct_c" / name.removeprefix(manifest.CT_C_FOLDER)).write_bytes(content)
    for case, image, label in (
        ("ct_a", "imagesTr/ct_a.nii.gz", manifest.CT_A_LABEL),
        ("ct_c", "imagesTs/ct_c", manifest.CT_C_LABEL),
    ):
        (raw / f"{case}.nii.gz").write_bytes(members[label])
        folder = "labelsTr" if case == "ct_a" else "labelsTs"
        _write_labels(root / image, raw / f"{case}.nii.gz", root / folder / f"{case}.nii.gz")
    shutil.rmtree(raw)
    return {
        "name": "sparseg CT sample",
        "description": "12 abdominal structures; two patients",
        "provenance": PROVENANCE,
        "licence": "Apache-2.0",
        "channel_names": {"0": "CT"},
        "labels": {str(i): name for i, name in LABELS.items()},
        "training": [{"image": "imagesTr/ct_a.nii.gz", "label": "labelsTr/ct_a.nii.gz"}],
        "test": [{"image": "imagesTs/ct_c", "label": "labelsTs/ct_c.nii.gz"}],
    }


def _write_labels(image_path: Path, raw_path: Path, out: Path) -> None:
    image, raw = read_volume(image_path), read_labels(raw_path)
    ours = np.zeros(int(raw.array.max()) + 1 + max(old for old, _, _ in manifest.ORGANS), np.uint8)
    for new, (old, _, _) in enumerate(manifest.ORGANS, start=1):
        ours[old] = new
    write_label_map(out, ours[labels_on_grid(raw, image)], image.affine, label_names=LABELS)
    require_same_grid(image, read_labels(out), what="image and labels")


def labels_on_grid(labels: Volume, image: Volume) -> np.ndarray:
    """Return label ids `[H,W,D]` on the image's grid, by axis order and flips alone.

    Args:
        labels: `[1,H0,W0,D0]`, the same voxels in another axis order.
        image: Gives the grid.

    Raises:
        GeometryError: the grids are not the same up to axis order and direction (1e-4 mm).
    """
    ours, theirs = ras_axes(image.affine), ras_axes(labels.affine)
    image_affine = reorient_affine(image.affine, image.shape, *ours)
    labels_affine = reorient_affine(labels.affine, labels.shape, *theirs)
    in_ras = reorient(labels.array, *theirs)
    moved = undo_reorient(in_ras, *ours)[0]
    shift = corner_distance_mm(image_affine, labels_affine, in_ras.shape[1:])
    if moved.shape != image.shape or shift > MAX_SHIFT_MM:
        raise GeometryError(
            "image and labels must share one grid up to axis order and direction",
            received=f"{image.shape} and {moved.shape}, {shift:.3g} mm apart",
            where=f"{image.source} / {labels.source}",
            remedy="clear the cache and fetch again",
        )
    return np.ascontiguousarray(moved)


def _check_class_map(source: bytes) -> None:
    """Compare our table of classes with the literal `class_map` in the archive; nothing of it is executed."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "class_map":
            names = ast.literal_eval(node.value)["total"]
            wrong = [(old, name) for old, name, _ in manifest.ORGANS if names.get(old) != name]
            if not wrong:
                return
            raise FetchError(
                "classes must have the ids of the archive's class map",
                received=wrong,
                remedy="clear the cache and fetch again",
            )
    raise FetchError(
        "the archive must hold a class map",
        where=manifest.CLASS_MAP,
        remedy="clear the cache and fetch again",
    )
