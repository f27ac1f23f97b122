"""A label map written as DICOM SEG lies where its series lies, by two readers, whatever the orientation."""

import re
import shutil

import highdicom
import numpy as np
import pydicom
import pytest

from hazards.dicom_faults import AXIAL, make_multiframe, save_series
from sparseg.errors import VolumeError
from sparseg.predict.colours import label_colours
from sparseg.predict.dicom_out import SourceSeries
from sparseg.predict.label_files import SUFFIX_OF, LabelFiles
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.dicom import read_dicom_series
from sparseg.volumes.dicom_seg import read_segmentation
from volumes.dicom_label_files import make_series

from .threshold_model import threshold_predictor

NAMES = {0: "background", 1: "liver", 4: "tumour"}
PATIENT = {
    "PatientName": "ZZPHI01^ANNA",
    "PatientID": "ZZPHI02",
    "InstitutionName": "ZZPHI05",
    "PatientComments": "ZZPHI07",
    "SeriesDescription": "ZZPHI08",
    "ImageComments": "ZZPHI09",
    "ProtocolName": "ZZPHI10",
    "OperatorsName": "ZZPHI11",
    "Manufacturer": "ZZPHI12",
    "StationName": "ZZPHI13",
    "StudyDescription": "ZZPHI14",
}


def oblique():
    """A rotation about two axes, in the few digits that scanners write."""
    a, b = np.radians(20), np.radians(-35)
    first = np.array([np.cos(a), np.sin(a), 0])
    second = np.array([-np.sin(a) * np.cos(b), np.cos(a) * np.cos(b), np.sin(b)])
    return tuple(np.round([*first, *second], 5).tolist())


ORIENTATIONS = {
    "axial": AXIAL,
    "negated columns": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "negated": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": oblique(),
}


def make_ids(shape=(12, 9, 8)):
    """Ids that no flip or exchange of axes leaves as they are."""
    ids = np.random.default_rng(1).choice(np.array([0, 0, 1, 4], np.uint8), shape)
    ids[..., 2] = 0
    return ids


def require_in_place(path, ids, image):
    """Compare through our reader voxel by voxel, and through highdicom in LPS mm."""
    file = read_segmentation(path)
    assert file.names == ("liver", "tumour")
    for index, label_id in enumerate((1, 4)):
        np.testing.assert_array_equal(file.mask(index, image), ids == label_id)
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    for number, label_id in ((1, 1), (2, 4)):
        found = np.argwhere(volume.array == number)
        world = found @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        voxels = (world - lps[:3, 3]) @ np.linalg.inv(lps[:3, :3]).T
        assert np.abs(voxels - np.rint(voxels)).max() < 1e-3
        back = np.zeros(ids.shape, bool)
        back[tuple(np.rint(voxels).astype(int).T)] = True
        assert len(found) == back.sum()
        np.testing.assert_array_equal(back, ids == label_id)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_lie_where_their_series_lies(orientation, kind, tmp_path):
    slices = make_series(cosines=ORIENTATIONS[orientation])
    # The names of the files and InstanceNumber say nothing about the order.
    folder = save_series(tmp_path / "s", [slices[i] for i in (5, 2, 7, 0, 1, 6, 3, 4)])
    ids = make_ids()
    SourceSeries(folder).write(tmp_path / "seg.dcm", ids, NAMES, kind=kind)
    require_in_place(tmp_path / "seg.dcm", ids, read_dicom_series(folder))


def test_segments_have_the_colours_of_other_formats(tmp_path):
    folder = save_series(tmp_path / "s", make_series())
    SourceSeries(folder).write(tmp_path / "seg.dcm", make_ids(), NAMES)
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    for item, colour in zip(segments, label_colours(NAMES).values(), strict=True):
        shown = highdicom.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(shown, colour, atol=1)


def test_every_frame_names_the_image_it_lies_on(tmp_path):
    slices = make_series(cosines=oblique())
    folder = save_series(tmp_path / "s", slices)
    SourceSeries(folder).write(tmp_path / "seg.dcm", make_ids(), NAMES)
    position_of = {item.SOPInstanceUID: list(item.ImagePositionPatient) for item in slices}
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    for frame in written.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = list(frame.PlanePositionSequence[0].ImagePositionPatient)
        np.testing.assert_allclose(position, position_of[source], atol=1e-6)


def test_directions_that_differ_by_rounding_become_one(tmp_path):
    slices = make_series(cosines=oblique())
    for number, item in enumerate(slices):
        item.ImageOrientationPatient = [float(v) * 1.003 + 1e-5 * (number % 2) for v in oblique()]
    folder = save_series(tmp_path / "s", slices)
    ids = make_ids()
    SourceSeries(folder).write(tmp_path / "seg.dcm", ids, NAMES)
    require_in_place(tmp_path / "seg.dcm", ids, read_dicom_series(folder))
    shared = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0]
    cosines = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    np.testing.assert_allclose(cosines @ cosines.T, np.eye(2), atol=1e-9)


def multiframe():
    dataset = make_multiframe()
    for name, value in vars_of_a_study().items():
        setattr(dataset, name, value)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.9.1.1"
    return dataset


def vars_of_a_study():
    names = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    return {name: getattr(make_series()[0], name) for name in names}


def test_frames_of_one_file_keep_their_order(tmp_path):
    """Its frames are stored from the last slice to the first."""
    folder = save_series(tmp_path / "s", [multiframe()])
    ids = make_ids()
    SourceSeries(folder).write(tmp_path / "seg.dcm", ids, NAMES)
    require_in_place(tmp_path / "seg.dcm", ids, read_dicom_series(folder))


def test_a_file_without_shared_macros_takes_labels_too(tmp_path):
    """Orientation and spacing of each frame beside its position, as old converters write them."""
    dataset = multiframe()
    (shared,) = dataset.SharedFunctionalGroupsSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        group.PlaneOrientationSequence = shared.PlaneOrientationSequence
    del dataset.SharedFunctionalGroupsSequence
    folder = save_series(tmp_path / "s", [dataset])
    ids = make_ids()
    SourceSeries(folder).write(tmp_path / "seg.dcm", ids, NAMES)
    require_in_place(tmp_path / "seg.dcm", ids, read_dicom_series(folder))


def test_only_what_dicom_demands_is_copied(tmp_path):
    folder = save_series(tmp_path / "s", make_series(**PATIENT))
    SourceSeries(folder).write(tmp_path / "seg.dcm", make_ids(), NAMES)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (str(written.PatientName), written.PatientID) == ("ZZPHI01^ANNA", "ZZPHI02")
    assert written.SeriesDescription == "sparseg segmentation"
    found = re.findall(rb"ZZPHI\d\d", (tmp_path / "seg.dcm").read_bytes())
    assert sorted(found) == [b"ZZPHI01", b"ZZPHI02"]


def test_absent_patient_fields_become_empty(tmp_path):
    slices = make_series()
    for item in slices:
        del item.PatientSex, item.StudyID, item.AccessionNumber, item.PatientBirthDate
    folder = save_series(tmp_path / "s", slices)
    SourceSeries(folder).write(tmp_path / "seg.dcm", make_ids(), NAMES)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientSex == ""


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_series_without_uids_is_refused(keyword, tmp_path):
    slices = make_series(**PATIENT)
    for item in slices:
        delattr(item, keyword)
    with pytest.raises(VolumeError, match=f"received no {keyword}") as caught:
        SourceSeries(save_series(tmp_path / "s", slices))
    assert "ZZPHI" not in str(caught.value)


def test_missing_input_is_called_missing(tmp_path):
    with pytest.raises(VolumeError, match="no such folder"):
        SourceSeries(tmp_path / "s")


class TestPredictor:
    """Through the predictor: refusals come before the network, archives go through it."""

    settings = PredictSettings(files=LabelFiles("dicom-seg"))

    def test_nifti_is_refused_before_it_is_read(self, tmp_path, monkeypatch):
        predictor = threshold_predictor(monkeypatch, self.settings)
        (tmp_path / "a.nii.gz").write_bytes(b"not read")
        with pytest.raises(VolumeError, match=r"--format nii\.gz") as caught:
            predictor.predict_file(tmp_path / "a.nii.gz", tmp_path / "out" / "a.dcm")
        assert caught.value.code == "dicom-out-input"
        assert not (tmp_path / "out").exists()

    def test_folder_and_its_zip_give_the_same_labels(self, tmp_path, monkeypatch):
        folder = save_series(tmp_path / "s", make_series())
        shutil.make_archive(str(tmp_path / "s"), "zip", tmp_path, "s")
        predictor = threshold_predictor(monkeypatch, self.settings, foreground_crop=False)
        image = read_dicom_series(folder)
        ids, _ = predictor.predict_volume(image)
        assert len(np.unique(ids)) > 1
        for source in (folder, tmp_path / "s.zip"):
            predictor.predict_file(source, tmp_path / "seg.dcm")
            file = read_segmentation(tmp_path / "seg.dcm")
            for index, label_id in enumerate((1, 2)):
                np.testing.assert_array_equal(file.mask(index, image), ids == label_id)

    def test_labelmap_on_request(self, tmp_path, monkeypatch):
        folder = save_series(tmp_path / "s", make_series())
        settings = PredictSettings(files=LabelFiles("dicom-seg", labelmap=True))
        threshold_predictor(monkeypatch, settings).predict_file(folder, tmp_path / "seg.dcm")
        assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentationType == "LABELMAP"


def test_suffixes():
    assert SUFFIX_OF == {
        "nii.gz": ".nii.gz",
        "seg.nrrd": ".seg.nrrd",
        "dicom-seg": ".dcm",
        "rtstruct": ".dcm",
    }
