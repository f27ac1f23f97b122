"""SEG objects: what they say, and what is refused. Their place is tested in predict/test_dicom_out.py."""

import highdicom
import numpy as np
import pydicom
import pytest

from sparseg.errors import GeometryError, LabelError, VolumeError
from sparseg.volumes.dicom_seg_writer import SegmentationHeader, make_segmentation, write_segmentation

from .dicom_label_files import make_series

NAMES = {0: "background", 2: "left kidney", 7: "liver tumour", 9: "veins"}
SHAPE = (12, 9, 8)


def header(**changes):
    values = {
        "algorithm": "test",
        "family": "network",
        "version": "1.2",
        "software": ("sparseg 1.2", "highdicom 0"),
        "description": "d" * 80,
        "series_description": "s",
        "series_number": 5,
    }
    return SegmentationHeader(**{**values, **changes})


def labels():
    return np.random.default_rng(0).choice(np.array([0, 0, 2, 7], np.uint8), SHAPE)


def test_segments_are_numbered_by_id_and_coded():
    made = make_segmentation(make_series(), labels(), NAMES, header())
    first, second, third = made.SegmentSequence
    assert [item.SegmentNumber for item in made.SegmentSequence] == [1, 2, 3]
    assert [item.SegmentLabel for item in made.SegmentSequence] == ["left kidney", "liver tumour", "veins"]
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    assert second.AnatomicRegionSequence[0].CodeMeaning == "Liver"
    assert third.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99SPARSEG"
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("test", "1.2")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert "TrackingUID" not in first


def test_object_refers_to_its_series():
    series = make_series(study="1.9", series="1.9.1", frame="1.9.7")
    made = make_segmentation(series, labels(), NAMES, header())
    assert (made.StudyInstanceUID, made.FrameOfReferenceUID) == ("1.9", "1.9.7")
    assert made.SeriesInstanceUID not in ("1.9.1", "")
    (reference,) = made.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == "1.9.1"
    instances = {item.ReferencedSOPInstanceUID for item in reference.ReferencedInstanceSequence}
    assert instances == {item.SOPInstanceUID for item in series}
    assert list(made.SoftwareVersions) == ["sparseg 1.2", "highdicom 0"]
    assert made.ContentDescription == "d" * 64
    assert (made.Modality, made.SeriesNumber, made.SegmentationType) == ("SEG", 5, "BINARY")


def test_two_objects_share_no_uid():
    one, two = (make_segmentation(make_series(), labels(), NAMES, header()) for _ in range(2))
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert one.SeriesInstanceUID != two.SeriesInstanceUID


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_pixels_read_back_by_highdicom_and_pydicom(kind, tmp_path):
    ids, series = labels(), make_series()
    made = make_segmentation(series, ids, NAMES, header(), kind=kind)
    write_segmentation(tmp_path / "seg.dcm", made)
    assert [item.name for item in tmp_path.iterdir()] == ["seg.dcm"]
    plain = pydicom.dcmread(tmp_path / "seg.dcm")
    assert plain.SegmentationType == kind
    expected = np.array([0, 0, 1, 0, 0, 0, 0, 2])[ids].transpose(2, 1, 0)
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [item.SOPInstanceUID for item in series]
    placed = read.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(placed, expected)
    frames = plain.pixel_array
    if kind == "LABELMAP":
        # The order of the frames is the writer's choice; each says where it lies.
        groups = plain.PerFrameFunctionalGroupsSequence
        depths = [float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups]
        np.testing.assert_array_equal(frames[np.argsort(depths)], expected)
    else:
        assert len(frames) == sum(bool((plane == number).any()) for plane in expected for number in (1, 2, 3))
        assert frames.sum() == (expected > 0).sum()


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_nothing_found_is_an_object_too(kind, tmp_path):
    made = make_segmentation(make_series(), np.zeros(SHAPE, np.uint8), NAMES, header(), kind=kind)
    write_segmentation(tmp_path / "seg.dcm", made)
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert read.segment_numbers == [1, 2, 3]
    assert read.get_stored_frames().sum() == 0


def test_more_than_255_segments():
    ids = np.zeros(SHAPE, np.uint16)
    ids[3, 4, 5] = 300
    names = {number: f"part {number}" for number in range(301)}
    made = make_segmentation(make_series(), ids, names, header(), kind="LABELMAP")
    assert (made.BitsAllocated, made.get_stored_frames().max()) == (16, 300)


def test_refusals():
    series = make_series()
    with pytest.raises(LabelError, match="must have a name"):
        make_segmentation(series, np.full(SHAPE, 3, np.uint8), NAMES, header())
    with pytest.raises(LabelError, match="must have a name"):
        make_segmentation(series, np.full(SHAPE, 10, np.uint8), NAMES, header())
    with pytest.raises(LabelError, match="besides the background"):
        make_segmentation(series, labels(), {0: "background"}, header())
    with pytest.raises(GeometryError, match=r"\(9, 12, 8\) for \(12, 9, 8\)"):
        make_segmentation(series, labels().transpose(1, 0, 2), NAMES, header())


@pytest.mark.parametrize(
    ("one", "two"), [("x" * 64 + "1", "x" * 64 + "2"), ("y" * 63, "y" * 63 + " left"), ("a\\b", "a_b")]
)
def test_names_that_dicom_cannot_tell_apart_are_refused(one, two):
    with pytest.raises(LabelError, match="ids 2 and 9") as info:
        make_segmentation(make_series(), labels(), {**NAMES, 2: one, 9: two}, header())
    assert info.value.code == "label-names"


def test_a_backslash_does_not_part_a_name():
    made = make_segmentation(make_series(), labels(), {**NAMES, 2: "tumour\\core"}, header())
    assert made.SegmentSequence[0].SegmentLabel == "tumour_core"


def test_incomplete_headers_are_refused_without_quoting_them():
    series = make_series(patient="ZZPHI02")
    for item in series:
        del item.PatientSex
    with pytest.raises(VolumeError) as caught:
        make_segmentation(series, labels(), NAMES, header())
    assert caught.value.code == "dicom-seg-source"
    assert "PatientSex" in str(caught.value)
    assert "ZZPHI" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    made = make_segmentation(make_series(), labels(), NAMES, header())

    def refuse(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(VolumeError, match="No space left"):
        write_segmentation(tmp_path / "seg.dcm", made)
    assert list(tmp_path.iterdir()) == []
