"""Row N20: unusual but valid files, from file to file through `sparseg predict`; none may be refused."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from predict.threshold_model import classify, save_tiny_model
from sparseg.cli.main import run
from sparseg.models.segmenter import SparseUNETR
from sparseg.predict.inputs import collect_cases

from .dicom_faults import make_multiframe, make_slices, save_series, stored_values
from .figures import Figure
from .nifti_faults import base_affine, base_array, nifti_bytes, patched, rotated, save
from .test_n20_oddities import ODDITIES


class Made(NamedTuple):
    """A file, the affine that its labels must have, and the right labels."""

    path: Path
    affine: np.ndarray
    labels: np.ndarray


def truth(array: np.ndarray) -> np.ndarray:
    """Class of the nearest of 0, 100 and 200, as the stand-in for the network decides."""
    return np.clip(np.round(array / 100), 0, 2)


def whole_numbers(dtype: str) -> np.ndarray:
    return np.round(base_array()).astype(dtype)


def nifti(name: str, raw: bytes, affine: np.ndarray | None = None) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        grid = base_affine() if affine is None else affine
        return Made(save(folder / name, raw), grid, truth(base_array()))

    return make


def scaled(slope: float, inter: float) -> Callable[[Path], Made]:
    """Stored numbers that mean the base image only once they are scaled."""

    def make(folder: Path) -> Made:
        stored = np.round((base_array() - inter) / slope).astype(np.int16)
        raw = patched(nifti_bytes(stored), 112, "ff", slope, inter)
        return Made(save(folder / f"scaled {slope}.nii.gz", raw), base_affine(), truth(base_array()))

    return make


def members(name: str, *parts: bytes) -> Callable[[Path], Made]:
    """A gzip file of these members."""

    def make(folder: Path) -> Made:
        (folder / name).write_bytes(b"".join(parts))
        return Made(folder / name, base_affine(), truth(base_array()))

    return make


def itk(name: str, dtype: str = "f4", *, turn: bool = False, compress: bool = True) -> Callable[[Path], Made]:
    """The base image as SimpleITK writes it, in LPS."""

    def make(folder: Path) -> Made:
        affine = rotated(base_affine()) if turn else base_affine()
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        array = base_array() if dtype == "f4" else whole_numbers(dtype)
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        sitk.WriteImage(image, str(folder / name), useCompression=compress)
        return Made(folder / name, affine, truth(array))

    return make


def copied(name: str) -> Callable[[Path], Made]:
    """A NIfTI file that SimpleITK saved under another format, with the fields of its header as metadata."""

    def make(folder: Path) -> Made:
        source = save(folder.parent / "source.nii.gz", nifti_bytes())
        sitk.WriteImage(sitk.ReadImage(str(source)), str(folder / name))
        return Made(folder / name, base_affine(), truth(base_array()))

    return make


def turned(name: str, *signs: int) -> Callable[[Path], Made]:
    """Oblique, with both forms and their codes different."""
    affine = rotated(base_affine() @ np.diag([*signs, 1]))
    return nifti(name, nifti_bytes(qform=(affine, 1), sform=(affine, 2)), affine)


def series(kind: str) -> Callable[[Path], Made]:
    """A DICOM series as a folder, zipped, or in one multi-frame file."""

    def make(folder: Path) -> Made:
        slices = [make_multiframe()] if kind == "multiframe" else make_slices()
        slope = 1.0 + np.arange(len(stored_values())) if kind == "multiframe" else 1.0
        values = stored_values().transpose(2, 1, 0) * slope - 1024
        path = save_series(folder / f"series {kind}", slices)
        if kind == "zipped":
            with zipfile.ZipFile(folder / "series.zip", "w") as archive:
                for file in path.iterdir():
                    archive.write(file, f"study/1/{file.name}")
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
            path = folder / "series.zip"
        # Read by position and cosines, by hand: see expected_affine.
        affine = np.array([[-0.7, 0, 0, 40], [0, -0.8, 0, 60], [0, 0, 2.5, 100], [0, 0, 0, 1]])
        return Made(path, affine, truth(values))

    return make


RAW = nifti_bytes()
MAKERS: dict[str, Callable[[Path], Made]] = {
    **{name: nifti(f"{name.replace(',', '')}.nii", raw) for name, raw in ODDITIES.items()},
    "letters of other scripts": nifti("ü ñ 脳.nii.gz", RAW),
    "capital suffix": members("UPPER.NII.GZ", gzip.compress(RAW)),
    "dots": nifti("a.b.c.nii.gz", RAW),
    "leading dash": nifti("-rf.nii", RAW),
    "very long name": nifti(f"{'n' * 240}.nii.gz", RAW),
    "gzip of two members": members("two.nii.gz", gzip.compress(RAW[:5000]), gzip.compress(RAW[5000:])),
    "gzip with padding": members("padded.nii.gz", gzip.compress(RAW), bytes(512)),
    "gzip stored": members("stored.nii.gz", gzip.compress(RAW, 0)),
    **{f"{d}": nifti(f"type {d}.nii.gz", nifti_bytes(whole_numbers(d))) for d in ("u2", "i2", "i4", "u4")},
    "slope and inter": scaled(0.5, -1024.0),
    "negative slope": scaled(-0.5, 3.0),
    "oblique": turned("oblique.nii.gz", 1, 1, 1),
    "oblique, mirrored": turned("mirrored.nii.gz", -1, 1, 1),
    "nrrd": itk("a_nrrd.nrrd"),
    "nrrd, raw, int16": itk("b_nrrd.nrrd", "i2", compress=False),
    "nrrd, detached": itk("c_nrrd.nhdr", "u2"),
    "mha": itk("a_mha.mha"),
    "mha, uint16, oblique": itk("b_mha.mha", "u2", turn=True),
    "mhd": itk("c_mhd.mhd", "i2", compress=False),
    "mha made from nifti": copied("d_mha.mha"),
    "mhd made from nifti": copied("e_mhd.mhd"),
    "nrrd made from nifti": copied("f_nrrd.nrrd"),
    **{f"DICOM {kind}": series(kind) for kind in ("folder", "zipped", "multiframe")},
}


def wrong_with(made: Made, output: Path) -> str:
    """What is wrong with the labels of one case; empty if nothing is."""
    found = nib.load(output)
    labels = np.asarray(found.dataobj)
    if labels.shape != made.labels.shape or not np.array_equal(labels, made.labels):
        return "labels"
    return "" if np.allclose(found.affine, made.affine, atol=1e-5) else "affine"


def test_n20_odd_but_valid_files_from_file_to_file(
    tmp_path: Path, figure: Figure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SparseUNETR, "forward", classify)
    model = save_tiny_model(tmp_path / "model", foreground_crop=False)
    (tmp_path / "in").mkdir()
    cases = {name: make(tmp_path / "in") for name, make in MAKERS.items()}
    assert len({made.path for made in cases.values()}) == len(cases) >= 30
    out = tmp_path / "out"
    paths = [made.path for made in cases.values()]
    names = dict(zip(cases, (case.name for case in collect_cases(paths, out)), strict=True))
    code = run(["predict", *map(str, paths), "--model", str(model), "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr()
    rows = {row["case"]: row for row in json.loads((out / "report.json").read_text())["cases"]}
    refused = {name for name, case in names.items() if rows[case]["status"] != "ok"}
    wrong = {
        name: found
        for name, made in cases.items()
        if name not in refused and (found := wrong_with(made, out / rows[names[name]]["output"]))
    }
    figure("N20", "valid files refused", len(refused), of=len(cases))
    figure("N20", "labels that are wrong or in another place", len(wrong), of=len(cases))
    assert refused == set(), printed.err
    assert wrong == {}
    assert code == 0
