"""`sparseg predict --format dicom-seg` and zipped series; where patient data may and may not be (row X4)."""

import json
import re
import shutil
import zipfile

import pydicom
import pytest

from hazards.dicom_faults import save_series
from sparseg.volumes.dicom import read_dicom_series
from sparseg.volumes.dicom_seg import read_segmentation
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom
from volumes.dicom_label_files import make_series

MARKER = re.compile(rb"ZZPHI", re.IGNORECASE)


@pytest.fixture
def predict(sparseg, model_folder, tmp_path):
    """Return `predict(inputs...)` with the model and the folder `out`."""

    def command(*inputs, more=("--format", "dicom-seg")):
        out = tmp_path / "out"
        return sparseg("predict", *inputs, "--model", model_folder, "--out", out, "--device", "cpu", *more)

    return command


@pytest.fixture
def series(tmp_path):
    """A folder whose patient is called ZZPHI^Name."""
    return save_series(tmp_path / "scan", make_series(StudyDescription="ZZPHI"))


def names_in(folder):
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.usefixtures("classifying")
def test_series_becomes_one_object_that_alone_names_the_patient(predict, series, tmp_path):
    outcome = predict(series)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"scan: {tmp_path / 'out' / 'scan.dcm'} (")
    assert names_in(tmp_path / "out") == [
        "report",
        "report.html",
        "report.json",
        "scan.dcm",
        "statistics.json",
    ]
    written = pydicom.dcmread(tmp_path / "out" / "scan.dcm")
    assert (str(written.PatientName), written.SegmentationType) == ("ZZPHI^Name", "BINARY")
    assert len(MARKER.findall((tmp_path / "out" / "scan.dcm").read_bytes())) == 1
    for name in ("report.json", "statistics.json", "report/scan.json"):
        assert not MARKER.search((tmp_path / "out" / name).read_bytes())
    assert not MARKER.search(outcome.out.encode())


@pytest.mark.usefixtures("classifying")
def test_the_same_ids_as_the_nifti_output(predict, series, tmp_path):
    assert predict(series, more=()).code == 0
    assert predict(series, more=("--format", "dicom-seg", "--labelmap")).code == 0
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    file = read_segmentation(tmp_path / "out" / "scan.dcm")
    image = read_dicom_series(series)
    assert file.names == ("liver", "tumor")
    counts = [int(file.mask(index, image).sum()) for index in range(2)]
    assert sum(counts) > 0
    assert str(counts[0]) in json.dumps(statistics)


@pytest.mark.usefixtures("classifying")
def test_zip_gives_a_nifti_file_too(predict, series, tmp_path):
    shutil.make_archive(str(tmp_path / "p 1"), "zip", series.parent, "scan")
    assert predict(tmp_path / "p 1.zip", more=()).code == 0
    names = ["p 1.nii.gz", "report", "report.html", "report.json", "statistics.json"]
    assert names_in(tmp_path / "out") == names


def test_nifti_input_is_refused_and_says_how_to_go_on(predict, tmp_path):
    image, _ = make_phantom((12, 10, 9))
    write_image(tmp_path / "a.nii.gz", image)
    predict(tmp_path / "a.nii.gz").refused("a.nii.gz", "DICOM series", "--format nii.gz")
    assert not (tmp_path / "out").exists()


def test_hostile_zip_is_refused(predict, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../ZZPHI.dcm", b"x")
    outcome = predict(tmp_path / "a.zip")
    outcome.refused("a.zip", "stay inside")
    assert "ZZPHI" not in outcome.err
    assert names_in(tmp_path) == ["a.zip"]


def test_labelmap_belongs_to_dicom_seg(predict, series):
    predict(series, more=("--labelmap",)).refused("LABELMAP", "--format dicom-seg")


def test_series_of_no_study_is_refused_without_its_patient(predict, tmp_path):
    slices = make_series()
    for item in slices:
        del item.StudyInstanceUID
    outcome = predict(save_series(tmp_path / "scan", slices))
    outcome.refused("StudyInstanceUID", "scan")
    assert not MARKER.search(outcome.err.encode())


def test_errors_within_a_zip_name_the_archive_and_its_member(predict, tmp_path):
    folder = save_series(tmp_path / "scan", make_series())
    (folder / "003").write_bytes((folder / "003").read_bytes()[:700])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for item in sorted(folder.iterdir()):
            archive.write(item, f"ZZPHI/{item.name}")
    outcome = predict(tmp_path / "a.zip")
    outcome.refused(f"{tmp_path / 'a.zip'}, member 4: ")
    assert "ZZPHI" not in outcome.err
    assert "sparseg-" not in outcome.err


def test_a_zip_is_described_as_its_folder_is(sparseg, series, tmp_path):
    shutil.make_archive(str(tmp_path / "scan"), "zip", series.parent, "scan")
    of_folder, of_zip = sparseg("info", series), sparseg("info", tmp_path / "scan.zip")
    assert (of_folder.code, of_zip.code) == (0, 0)
    lines = of_zip.out.splitlines()
    assert str(tmp_path / "scan.zip") in lines[0]
    assert lines[1:] == of_folder.out.splitlines()[1:]
    assert len(lines) > 5
    (tmp_path / "bad.zip").write_bytes(b"PK")
    sparseg("info", tmp_path / "bad.zip").refused("bad.zip", "sound zip file")
