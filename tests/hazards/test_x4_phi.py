"""Row X4: what identifies a patient in the input appears in nothing that is written or printed."""

from __future__ import annotations

import gzip
import json
import re

import nibabel as nib
import numpy as np
import pytest

from predict.threshold_model import NAMES, save_tiny_model
from sparseg.cli.main import run
from sparseg.volumes.nifti_writer import write_label_map
from sparseg.volumes.phantoms import make_phantom

from .dicom_faults import make_slices, save_series

MARKER = re.compile(rb"ZZPHI\d\d", re.IGNORECASE)
DICOM_FIELDS = {
    "PatientName": "ZZPHI01^ANNA",
    "PatientID": "ZZPHI02",
    "PatientBirthDate": "19600101",
    "AccessionNumber": "ZZPHI04",
    "InstitutionName": "ZZPHI05",
    "ReferringPhysicianName": "ZZPHI06",
    "PatientComments": "ZZPHI07",
    "StudyDescription": "ZZPHI08",
}
BIRTH_DATE = b"19600101"  # a date has no room for letters: this is marker 03
NIFTI_FIELDS = {
    "descrip": b"ZZPHI09",
    "aux_file": b"ZZPHI10",
    "db_name": b"ZZPHI11",
    "intent_name": b"ZZPHI12",
}


def marked_series(folder, *, spoil=False):
    slices = make_slices()
    for item in slices:
        for name, value in DICOM_FIELDS.items():
            setattr(item, name, value)
    if spoil:
        del slices[3]
    return save_series(folder, slices)


def marked_nifti(path, *, spoil=False, seed=0):
    """Write a phantom with every free text field filled, and a header extension."""
    image, labels = make_phantom((14, 12, 13), spacing=(1.5, 1.0, 2.0), seed=seed)
    array = image.array[0].copy()
    if spoil:
        array[3, 3, 3] = np.nan
    file = nib.Nifti1Image(array, image.affine)
    file.header.set_xyzt_units("mm")
    for name, value in NIFTI_FIELDS.items():
        file.header[name] = value
    file.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"ZZPHI13 born " + BIRTH_DATE))
    nib.save(file, path)
    return labels


def markers_in(content):
    return MARKER.findall(content) + re.findall(BIRTH_DATE, content)


def require_clean(folder):
    """Look through every file below, compressed ones unpacked, and every name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content += gzip.decompress(content)
        assert markers_in(content) == [], path
        assert markers_in(str(path.relative_to(folder)).encode()) == [], path


@pytest.fixture
def command(capsys):
    """Return the command line as a function that checks what it prints."""

    def call(*arguments, code=0):
        returned = run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert markers_in((printed.out + printed.err).encode()) == []
        assert returned == code, printed.err

    return call


def test_the_search_finds_markers(tmp_path):
    """A test that looks for nothing would pass for ever."""
    marked_nifti(tmp_path / "a.nii.gz")
    with pytest.raises(AssertionError, match=r"a\.nii\.gz"):
        require_clean(tmp_path)
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert {found[-2:] for found in MARKER.findall(content)} == {b"09", b"10", b"11", b"12", b"13"}
    series = marked_series(tmp_path / "s")
    found = markers_in((series / "000").read_bytes())
    assert {bytes(item[-2:]) for item in found} == {b"01", b"02", b"04", b"05", b"06", b"07", b"08"}


def test_predict_and_info(command, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    marked_nifti(tmp_path / "nifti.nii.gz")
    inputs = [tmp_path / "nifti.nii.gz", marked_series(tmp_path / "series")]
    out = tmp_path / "out"
    command("predict", *inputs, "--model", model, "--out", out)
    for path in inputs:
        command("info", path)
    require_clean(out)
    reports = {"report", "report.json", "statistics.json"}
    assert {path.name for path in out.iterdir()} == {"nifti.nii.gz", "series.nii.gz"} | reports


def test_errors_and_their_report(command, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    marked_nifti(tmp_path / "good.nii.gz")
    marked_nifti(tmp_path / "nan.nii.gz", spoil=True)
    marked_series(tmp_path / "hole", spoil=True)
    inputs = [tmp_path / name for name in ("good.nii.gz", "nan.nii.gz", "hole")]
    out = tmp_path / "out"
    command("predict", *inputs, "--model", model, "--out", out, code=1)
    for path in inputs[1:]:
        command("info", path, code=2)
    rows = json.loads((out / "report.json").read_text())["cases"]
    assert [row["status"] for row in rows] == ["ok", "error", "error"]
    require_clean(out)


@pytest.mark.slow
def test_training_and_what_its_model_writes(command, tmp_path):
    """No marker in the run folder, and no case name in the model folder, which is passed on."""
    data, folder = tmp_path / "data", tmp_path / "run"
    for name in ("imagesTr", "labelsTr"):
        (data / name).mkdir(parents=True)
    entries = []
    for seed, name in enumerate(("mueller", "garcia")):
        labels = marked_nifti(data / "imagesTr" / f"{name}.nii.gz", seed=seed)
        ids = labels.array[0].astype(np.uint8)
        write_label_map(data / "labelsTr" / f"{name}.nii.gz", ids, labels.affine)
        entries.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    names = {str(number): name for number, name in NAMES.items()}
    content = {"name": "toy", "channel_names": {"0": "CT"}, "labels": names, "training": entries}
    (data / "dataset.json").write_text(json.dumps(content))
    options = ("--preset", "test_tiny", "--max-steps", "1", "--set", "batch_size=1")
    command("train", data, "--out", folder, *options)
    command("info", folder)
    require_clean(folder)
    for path in (folder / "best").iterdir():
        content = path.read_bytes()
        assert b"mueller" not in content
        assert str(tmp_path).encode() not in content
    out = tmp_path / "out"
    command("predict", data / "imagesTr" / "garcia.nii.gz", "--model", folder, "--out", out)
    references = tmp_path / "ref"
    references.mkdir()
    (data / "labelsTr" / "garcia.nii.gz").rename(references / "garcia.nii.gz")
    command("evaluate", "--pred", out, "--ref", references, "--out", out / "metrics.json")
    require_clean(out)
