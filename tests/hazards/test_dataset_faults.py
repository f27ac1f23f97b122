"""Faults of the hazard table inside a dataset: `check` names the right case and code, and nothing else."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

from hazards.dicom_faults import make_slices, save_series
from hazards.nifti_faults import patched
from sparseg.datasets.check import CheckResult, check_dataset
from sparseg.datasets.read import read_dataset
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

SHAPE, SPACING = (12, 10, 9), (1.5, 1.0, 2.0)
CLEAN = ("a", "b", "c", "d", "e", "bad")


class Paths(NamedTuple):
    """Files of the case that is going to be spoilt."""

    root: Path
    image: Path
    label: Path


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sound cases in Decathlon layout."""
    root = tmp_path_factory.mktemp("clean") / "toy"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(CLEAN):
        image, labels = make_phantom(SHAPE, spacing=SPACING, seed=seed)
        write_image(root / f"imagesTr/{name}.nii.gz", image)
        write_label_map(root / f"labelsTr/{name}.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    write_json(root, CLEAN)
    return root


@pytest.fixture
def paths(clean: Path, tmp_path: Path) -> Paths:
    root = tmp_path / "toy"
    shutil.copytree(clean, root)
    return Paths(root, root / "imagesTr/bad.nii.gz", root / "labelsTr/bad.nii.gz")


def write_json(root: Path, names: tuple[str, ...], image: str = "imagesTr/{}.nii.gz", **changes) -> None:
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names]
    if entries[-1]["image"] != image.format(names[-1]):
        entries[-1]["image"] = image.format(names[-1])
    content = {
        "name": "toy",
        "channel_names": {"0": "MR"},
        "labels": {"0": "background", "1": "liver", "2": "tumor"},
        "training": entries,
    }
    (root / "dataset.json").write_text(json.dumps(content | changes))


def check(root: Path, memory: Path | None = None) -> CheckResult:
    folder = root.parent / "memory" if memory is None else memory
    return check_dataset(read_dataset(root, strict=False), workers=1, memory=folder)


def header(offset: int, fmt: str, *values: object) -> Callable[[Paths], None]:
    def change(paths: Paths) -> None:
        raw = gzip.decompress(paths.image.read_bytes())
        paths.image.write_bytes(gzip.compress(patched(raw, offset, fmt, *values), mtime=0))

    return change


def pixels(change: Callable[[np.ndarray], np.ndarray], label: bool = False) -> Callable[[Paths], None]:
    """Rewrite the voxels of image or label with the same affine."""

    def spoil(paths: Paths) -> None:
        path = paths.label if label else paths.image
        file = nib.load(path)
        array = change(np.asarray(file.dataobj).copy())
        nib.save(nib.Nifti1Image(array, file.affine), path)

    return spoil


def grid(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]):
    """Rewrite voxels and affine of the label."""

    def spoil(paths: Paths) -> None:
        file = nib.load(paths.label)
        array, affine = change(np.asarray(file.dataobj).astype(np.uint8), file.affine.copy())
        write_label_map(paths.label, array, affine)

    return spoil


def content(change: Callable[[bytes], bytes], label: bool = False) -> Callable[[Paths], None]:
    """Rewrite the bytes of a file."""

    def spoil(paths: Paths) -> None:
        path = paths.label if label else paths.image
        path.write_bytes(change(path.read_bytes()))

    return spoil


def other_sform(paths: Paths) -> None:
    file = nib.load(paths.image)
    mirrored = np.diag([-1.0, 1, 1, 1]) @ file.affine
    image = nib.Nifti1Image(np.asarray(file.dataobj), file.affine)
    image.set_qform(file.affine, 1)
    image.set_sform(mirrored, 2)
    nib.save(image, paths.image)


def sheared(paths: Paths) -> None:
    file = nib.load(paths.image)
    affine = file.affine.copy()
    affine[1, 2] = 0.6
    image = nib.Nifti1Image(np.asarray(file.dataobj), None)
    image.set_sform(affine, 1)
    image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    nib.save(image, paths.image)


def metres(paths: Paths) -> None:
    file = nib.load(paths.image)
    affine = file.affine.copy()
    affine[:3] /= 1000
    image = nib.Nifti1Image(np.asarray(file.dataobj), affine)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("meter")
    nib.save(image, paths.image)


def put(array: np.ndarray, where: tuple[int, ...], value: float) -> np.ndarray:
    array = array.astype(np.float32)
    array[where] = value
    return array


def shifted(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    affine[0, 3] += 10
    return array, affine


def mirrored(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    affine[0] *= -1
    return array, affine


def longer(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.pad(array, ((0, 0), (0, 0), (0, 1))), affine


def stretched(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    affine[:3, 2] *= 1.01
    return array, affine


def turned(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same labels at the same place, stored with axes S, P, L."""
    image = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    code = nib.orientations.axcodes2ornt(("S", "P", "L"))
    stored = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), code))
    return np.asarray(stored.dataobj), stored.affine


def finer(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every voxel split into eight."""
    affine[:3, 3] -= affine[:3, :3] @ [0.25, 0.25, 0.25]
    affine[:3, :3] /= 2
    return array.repeat(2, 0).repeat(2, 1).repeat(2, 2), affine


def same_case_again(paths: Paths) -> None:
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(paths.root / folder / "a.nii.gz", paths.root / folder / "bad.nii.gz")


def same_image_again(paths: Paths) -> None:
    shutil.copy(paths.root / "imagesTr/a.nii.gz", paths.image)


def same_labels_again(paths: Paths) -> None:
    shutil.copy(paths.root / "labelsTr/a.nii.gz", paths.label)


def dicom(change: Callable[[list], list]) -> Callable[[Paths], None]:
    """The spoilt case as a DICOM series, with labels on the grid of the sound series."""

    def spoil(paths: Paths) -> None:
        paths.image.unlink()
        save_series(paths.root / "imagesTr/bad", change(make_slices()))
        write_json(paths.root, CLEAN, image="imagesTr/{}")

    return spoil


def tilted(slices: list) -> list:
    for index, item in enumerate(slices):
        x, y, z = item.ImagePositionPatient
        item.ImagePositionPatient = [x, y + index, z]
    return slices


FAULTS: dict[str, tuple[Callable[[Paths], None], str, str, str]] = {
    "N1 qform and sform": (other_sform, "nifti-qs-disagree", "error", ""),
    "N2 no orientation": (header(252, "hh", 0, 0), "nifti-no-orientation", "error", ""),
    "N4 shear": (sheared, "nifti-shear", "error", ""),
    "N5 pixdim": (header(80, "fff", 1.0, 1.0, 1.0), "nifti-qs-disagree", "error", ""),
    "N6 metres": (metres, "unit-not-mm", "note", "convert-units"),
    "N7 4-D": (pixels(lambda a: np.stack([a, a], axis=3)), "channel-count", "error", ""),
    "N7 RGB": (header(70, "hh", 128, 24), "nifti-not-scalar", "error", ""),
    "N9 NaN": (pixels(lambda a: put(a, (0, 0, 0), np.nan)), "nifti-nonfinite", "error", "fill-nonfinite"),
    "N9 labelled NaN": (pixels(lambda a: put(a, (...,), np.inf)), "nifti-nonfinite", "error", ""),
    "N10 constant": (pixels(lambda a: np.full_like(a, 7)), "image-constant", "warning", ""),
    "N12 truncated": (content(lambda raw: raw[: len(raw) // 2]), "nifti-truncated", "error", ""),
    "N12 truncated label": (content(lambda raw: raw[:-4], label=True), "nifti-truncated", "error", ""),
    "N13 bit flip": (
        content(lambda raw: raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:]),
        "nifti-corrupt",
        "error",
        "",
    ),
    "N14 HTML": (content(lambda _: b"<!DOCTYPE html><html>404</html>"), "nifti-html", "error", ""),
    "N14 empty": (content(lambda _: b""), "nifti-empty", "error", ""),
    "N15 header lies": (header(42, "hhh", 30000, 30000, 30000), "nifti-too-large", "error", ""),
    "L1 300": (pixels(lambda a: put(a, (2, 3, 4), 300), label=True), "label-unknown", "error", ""),
    "L1 -1": (pixels(lambda a: put(a, (2, 3, 4), -1), label=True), "label-ids", "error", ""),
    "L1 half": (pixels(lambda a: put(a, (2, 3, 4), 0.5), label=True), "label-ids", "error", ""),
    "L1 0.9999": (pixels(lambda a: a * 0.9999, label=True), "label-ids", "error", "round-label"),
    "L2 empty": (pixels(np.zeros_like, label=True), "label-empty", "warning", ""),
    "L3 +10 mm": (grid(shifted), "grid-position", "error", ""),
    "L3 mirrored": (grid(mirrored), "grid-orientation", "error", ""),
    "L3 shape + 1": (grid(longer), "grid-shape", "error", "resample-label"),
    "L3 spacing x 1.01": (grid(stretched), "grid-spacing", "error", ""),
    "L3 turned": (grid(turned), "grid-shape", "error", "reorient-label"),
    "L3 finer": (grid(finer), "grid-shape", "error", "resample-label"),
    "L5 case twice": (same_case_again, "case-duplicate", "error", "drop-duplicate"),
    "L5 image twice": (same_image_again, "case-duplicate", "error", ""),
    "L5 labels twice": (same_labels_again, "label-copied", "warning", ""),
    "missing image": (lambda paths: paths.image.unlink(), "file-missing", "error", ""),
    "missing label": (lambda paths: paths.label.unlink(), "file-missing", "error", ""),
    "D1 gap": (dicom(lambda s: s[:3] + s[4:]), "dicom-missing", "error", ""),
    "D4 tilt": (dicom(tilted), "dicom-tilt", "error", ""),
}


def test_nothing_is_found_where_nothing_is_wrong(clean: Path, tmp_path: Path) -> None:
    result = check(clean, tmp_path)
    assert result.findings == ()
    assert result.severity is None
    assert result.counts == {"cases": 6, "usable": 6, "errors": 0, "warnings": 0, "notes": 0}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(paths: Paths, fault: str) -> None:
    spoil, code, severity, repair = FAULTS[fault]
    spoil(paths)
    result = check(paths.root)
    found = [(f.case, f.code, f.severity, f.repair) for f in result.findings]
    assert found == [("bad", code, severity, repair)]
    (finding,) = result.findings
    assert finding.remedy
    assert finding.file.startswith(("imagesTr/bad", "labelsTr/bad"))
    # A second check recalls the sound cases and says the same.
    assert check(paths.root).findings == result.findings


def test_d1_slice_twice(paths: Paths) -> None:
    """A second file of one slice, in a series whose name no one looks at."""

    def doubled(slices: list) -> list:
        again = make_slices()[2]
        again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
        return [*slices, again]

    dicom(doubled)(paths)
    assert [(f.case, f.code) for f in check(paths.root).findings] == [("bad", "dicom-duplicate")]


def test_a_missing_modality(clean: Path, tmp_path: Path) -> None:
    """One of two channels is not there."""
    root = tmp_path / "toy"
    shutil.copytree(clean, root)
    for name in CLEAN:
        file = root / f"imagesTr/{name}.nii.gz"
        array = np.asarray(nib.load(file).dataobj)[None]
        two = array if name == "bad" else np.concatenate([array, array + 1])
        write_image(file, Volume(two, nib.load(file).affine))
    write_json(root, CLEAN, channel_names={"0": "T1", "1": "T2"})
    (finding,) = check(root).findings
    assert (finding.case, finding.code) == ("bad", "channel-count")
    assert "2 channels (T1, T2); received 1" in finding.message


def test_a_missing_modality_in_a_file_of_its_own(clean: Path, tmp_path: Path) -> None:
    """nnU-Net raw: one file per channel, one of them gone."""
    root = tmp_path / "Dataset001_toy"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in CLEAN:
        shutil.copy(clean / f"labelsTr/{name}.nii.gz", root / "labelsTr")
        for channel in range(1 if name == "bad" else 2):
            shutil.copy(clean / f"imagesTr/{name}.nii.gz", root / f"imagesTr/{name}_{channel:04d}.nii.gz")
    labels = {"background": 0, "liver": 1, "tumor": 2}
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content | {"numTraining": len(CLEAN)}))
    result = check(root)
    assert [(f.case, f.code, f.severity) for f in result.findings] == [("bad", "modality-missing", "error")]
    assert result.counts["cases"] == 6
    assert result.counts["usable"] == 5


def test_image_and_label_are_both_reported(paths: Paths) -> None:
    content(lambda raw: raw[:-20])(paths)
    pixels(lambda a: put(a, (2, 3, 4), 300), label=True)(paths)
    found = [(f.case, f.code, f.file) for f in check(paths.root).findings]
    assert found == [
        ("bad", "nifti-truncated", "imagesTr/bad.nii.gz"),
        ("bad", "label-unknown", "labelsTr/bad.nii.gz"),
    ]
