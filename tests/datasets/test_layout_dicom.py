"""Folders of DICOM: which series becomes a case, which file labels it, and what is reported."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hazards.dicom_faults import COLUMNS, ROWS, SLICES, save_series
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.declaration import Declaration
from sparseg.datasets.layouts import dicom
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.survey import survey
from sparseg.errors import LabelError
from volumes.dicom_label_files import make_rtstruct, make_seg, make_series, save

STRUCTURES = ("spleen", "Liver")


def box(k: int, i: tuple[float, float]) -> np.ndarray:
    """A rectangle in LPS mm around voxels of `make_slices` on slice k."""
    ijk = np.array([[i[0], 1.5, k], [i[1], 1.5, k], [i[1], 4.5, k], [i[0], 4.5, k]])
    return ijk * [0.7, 0.8, 2.5] + [-40, -60, 100]


def contours() -> dict[str, list[np.ndarray]]:
    return {"spleen": [box(2, (0.5, 3.5)), box(3, (0.5, 3.5))], "Liver": [box(2, (5.5, 9.5))]}


def patient(root: Path, number: int, *, label: str = "rtstruct", **options: Any) -> Path:
    """Write one patient with a CT series and, beside its folder, its labels."""
    folder = root / f"patient {number}"
    folder.mkdir(parents=True)
    uid = f"1.9.{number}"
    slices = make_series(
        **{"patient": f"ZZPHI{number}", "study": uid, "series": f"{uid}.1", "frame": f"{uid}.7", **options}
    )
    save_series(folder / "CT", slices)
    if label == "rtstruct":
        save(folder / "rs.dcm", make_rtstruct(slices[0], contours(), uid=f"{uid}.2"))
    elif label == "seg":
        masks = np.zeros((SLICES, ROWS, COLUMNS, 2), np.uint8)
        masks[2:4, 2:5, 1:4, 0] = 1
        masks[2, 2:5, 6:10, 1] = 1
        save(folder / "seg.dcm", make_seg(slices, masks, STRUCTURES))
    return folder


def read(root: Path, declaration: Declaration | None = None) -> Dataset:
    return dicom.read(root, declaration or Declaration())


def codes(dataset: Dataset) -> list[str]:
    return [finding.code for finding in dataset.problems]


def test_patients_become_cases_with_labels(tmp_path: Path) -> None:
    root = tmp_path / "set"
    patient(root, 1)
    patient(root, 2, label="seg")
    patient(root, 3, label="")
    (root / "notes.txt").write_text("x")
    assert dicom.recognise(root)
    dataset = read(root)
    assert [case.name for case in dataset.training] == ["patient 1_CT", "patient 2_CT"]
    assert [case.name for case in dataset.test] == ["patient 3_CT"]
    assert dataset.labels == {0: "background", 1: "Liver", 2: "spleen"}
    assert dataset.channels == ("CT",)
    assert (dataset.name, dataset.layout, dataset.problems) == ("set", "DICOM", ())
    assert len({case.subject for case in dataset.cases}) == 3
    assert not any("ZZPHI" in repr(case) for case in dataset.cases)
    expected = np.zeros((1, COLUMNS, ROWS, SLICES), np.int32)
    expected[0, 1:4, 2:5, 2:4] = 2
    expected[0, 6:10, 2:5, 2] = 1
    for case in dataset.training:
        image, labels = load_case(case, dataset)
        assert labels is not None
        np.testing.assert_array_equal(labels.array, expected)
        np.testing.assert_array_equal(labels.affine, image.affine)


def test_survey_of_a_dataset_found_by_its_folder(tmp_path: Path) -> None:
    patient(tmp_path / "set", 1)
    patient(tmp_path / "set", 2, label="seg")
    dataset = read_dataset(tmp_path / "set")
    assert dataset.layout == "DICOM"
    first, second = survey(dataset, memory=tmp_path / "memory")
    assert first.findings == second.findings == ()
    assert first.facts is not None
    assert first.facts == second.facts
    assert first.facts.label_counts == {0: COLUMNS * ROWS * SLICES - 30, 1: 12, 2: 18}


def test_declared_labels_choose_structures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    patient(tmp_path, 1)
    declaration = Declaration(name="x", channels=("scan",), labels={0: "background", 7: "spleen"})
    dataset = read(tmp_path, declaration)
    assert (dataset.name, dataset.channels, dataset.labels) == ("x", ("scan",), declaration.labels)
    with caplog.at_level(logging.INFO, "sparseg"):
        labels = load_case(dataset.training[0], dataset)[1]
    assert labels is not None
    assert np.unique(labels.array, return_counts=True)[1].tolist() == [COLUMNS * ROWS * SLICES - 18, 18]
    assert "structures left out: Liver" in caplog.text
    wrong = read(tmp_path, Declaration(labels={0: "background", 1: "liver"}))
    with pytest.raises(LabelError, match="spleen, Liver"):
        load_case(wrong.training[0], wrong)


def test_the_labelled_series_is_the_case(tmp_path: Path) -> None:
    folder = patient(tmp_path, 1)
    # A second series, with more slices, and a localizer in the folder of the labelled one.
    other = make_series(study="1.9.1", series="1.9.1.5", patient="ZZPHI1")
    save_series(folder / "CT", other, name="b{:03d}".format)
    scout = make_series(study="1.9.1", series="1.9.1.6", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save_series(folder / "CT", scout, name="c{:03d}".format)
    save_series(folder / "again", make_series(study="1.9.1", series="1.9.1.8", patient="ZZPHI1"))
    dataset = read(tmp_path)
    (case,) = dataset.cases
    assert (case.image, case.series_uid) == (folder / "CT", "1.9.1.1")
    assert load_case(case, dataset)[0].shape == (COLUMNS, ROWS, SLICES)


def test_without_labels_the_largest_series_counts(tmp_path: Path) -> None:
    save_series(tmp_path / "thick", make_series(series="1.9.1")[::2])
    save_series(tmp_path / "thin", make_series(series="1.9.2"))
    save_series(tmp_path / "scout", make_series(series="1.9.3", ImageType=["A", "B", "LOCALIZER"]))
    save_series(tmp_path / "xray", make_series(series="1.9.4", Modality="DX"))
    dataset = read(tmp_path)
    assert [case.name for case in dataset.test] == ["thin"]
    assert (dataset.training, dataset.labels, dataset.channels) == ((), {}, ("CT",))


def test_one_folder_is_a_dataset_of_one_case(tmp_path: Path) -> None:
    root = save_series(tmp_path / "one", make_series())
    dataset = read(root)
    assert [(case.name, case.image) for case in dataset.test] == [("one", root)]


def test_subjects(tmp_path: Path) -> None:
    patient(tmp_path / "a", 1, patient="same")
    patient(tmp_path / "b", 2, patient="same")
    assert [case.subject for case in read(tmp_path).training] == ["a", "b"]
    patient(tmp_path / "c", 3, patient="other")
    subjects = [case.subject for case in read(tmp_path).training]
    assert subjects[0] == subjects[1] != subjects[2]
    patient(tmp_path / "d", 4, patient="")
    assert read(tmp_path).training[3].subject == "d"


def test_labels_by_frame_of_reference(tmp_path: Path) -> None:
    folder = patient(tmp_path, 1, label="")
    dataset = make_rtstruct(make_series(study="1.9.1", frame="1.9.1.7")[0], contours())
    del dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    save(folder / "rs.dcm", dataset)
    assert [case.label for case in read(tmp_path).training] == [folder / "rs.dcm"]


def test_problems(tmp_path: Path) -> None:
    first = patient(tmp_path, 1)
    second = make_rtstruct(make_series(study="1.9.1", series="1.9.1.1", frame="1.9.1.7")[0], contours())
    save(first / "rs2.dcm", second)
    copied = patient(tmp_path, 2)
    (copied / "copy").mkdir()
    for file in (copied / "CT").iterdir():
        (copied / "copy" / file.name).write_bytes(file.read_bytes())
    patient(tmp_path, 3, Modality="MR")
    alone = make_rtstruct(make_series(series="9.9", study="9.9.9")[0], contours())
    save(tmp_path / "alone.dcm", alone)
    frame = patient(tmp_path, 4, label="")
    other = make_rtstruct(make_series(series="1.9.4.1", study="1.9.4", frame="8.8")[0], contours())
    save(frame / "rs.dcm", other)
    cut = patient(tmp_path, 5) / "rs.dcm"
    # After the mark DICM, within the header.
    cut.write_bytes(cut.read_bytes()[:150])
    dataset = read(tmp_path)
    assert sorted(codes(dataset)) == [
        "dicom-header",
        "dicom-modality",
        "dicom-series-folders",
        "label-frame",
        "label-several",
        "label-unmatched",
    ]
    assert dataset.training == ()
    assert [case.name for case in dataset.test] == ["patient 5_CT"]
    assert all(finding.remedy and finding.severity == "error" for finding in dataset.problems)


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    for number, name in enumerate(("a_b/c", "a/b_c")):
        (tmp_path / name).mkdir(parents=True)
        save_series(tmp_path / name, make_series(study=f"1.{number}", series=f"1.{number}.1"))
    names = [case.name for case in read(tmp_path).test]
    assert len(set(names)) == 2
    assert all(name.startswith("a_b_c_") for name in names)


def test_what_is_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(bytes(500))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "round").symlink_to(tmp_path)
    assert not dicom.recognise(tmp_path)
    assert not dicom.recognise(tmp_path / "a.nii.gz")
