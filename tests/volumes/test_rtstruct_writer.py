"""Structure sets hold the labels voxel for voxel, whatever the orientation, and refer to their series."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon

from hazards.dicom_faults import AXIAL, SPACING, save_series
from predict.test_dicom_out import ORIENTATIONS, PATIENT, multiframe
from sparseg.errors import GeometryError, LabelError, VolumeError
from sparseg.predict.colours import label_colours
from sparseg.predict.dicom_out import SourceSeries
from sparseg.volumes.dicom import read_dicom_series
from sparseg.volumes.dicom_contents import read_contents
from sparseg.volumes.dicom_labels import read_dicom_label_map
from sparseg.volumes.dicom_rtstruct import read_structure_set
from sparseg.volumes.dicom_rtstruct_writer import (
    SliceReference,
    StructureSetHeader,
    make_structure_set,
    write_structure_set,
)
from sparseg.volumes.volume import Volume
from volumes.dicom_label_files import make_series

NAMES = {0: "background", 1: "liver", 4: "tumour", 7: "left kidney", 300: "absent"}
IDS = {name: label for label, name in NAMES.items() if label and name != "absent"}


def make_ids(shape=(12, 9, 8)):
    """One-voxel structures, diagonal neighbours, holes, islands in holes and all four borders."""
    generator = np.random.default_rng(3)
    ids = generator.choice(np.array([0, 1, 1, 1, 4], np.uint16), shape)
    ids[..., 2] = 0
    ids[1:-1, 1:-1, 3] = 7
    ids[3:-3, 3:-3, 3] = 0
    ids[5, 4, 3] = 4
    ids[..., 4] = 1
    ids[2, 2, 4], ids[8, 5, 4], ids[0, 0, 4] = 0, 7, 4
    ids[..., 6] = 0
    ids[11, 8, 6] = 7
    return ids


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_come_back_voxel_for_voxel(orientation, tmp_path):
    slices = make_series(cosines=ORIENTATIONS[orientation])
    folder = save_series(tmp_path / "s", [slices[i] for i in (5, 2, 7, 0, 1, 6, 3, 4)])
    ids = make_ids()
    SourceSeries(folder).write_structures(tmp_path / "rs.dcm", ids, NAMES)
    image = read_dicom_series(folder)
    read = read_dicom_label_map(tmp_path / "rs.dcm", image, IDS)
    np.testing.assert_array_equal(read.array[0], ids)
    np.testing.assert_array_equal(read.affine, image.affine)


def test_frames_of_one_file_keep_their_order(tmp_path):
    folder = save_series(tmp_path / "s", [multiframe()])
    ids = make_ids()
    SourceSeries(folder).write_structures(tmp_path / "rs.dcm", ids, NAMES)
    read = read_dicom_label_map(tmp_path / "rs.dcm", read_dicom_series(folder), IDS)
    np.testing.assert_array_equal(read.array[0], ids)
    written = pydicom.dcmread(tmp_path / "rs.dcm")
    heights = [-1] * 8
    for item in written.ROIContourSequence[0].ContourSequence:
        frame = item.ContourImageSequence[0].ReferencedFrameNumber
        heights[frame - 1] = round((float(item.ContourData[2]) - 100) / 2.5)
    # The frames are stored from the last slice to the first; slices 2 and 6 are empty.
    assert heights == [7, -1, 5, 4, 3, -1, 1, 0]
    study = written.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert len(study.RTReferencedSeriesSequence[0].ContourImageSequence) == 1


def test_another_program_fills_the_same_voxels(tmp_path):
    """matplotlib's polygons, in millimetres along the rows and columns, united over all contours."""
    folder = save_series(tmp_path / "s", make_series())
    ids = make_ids()
    SourceSeries(folder).write_structures(tmp_path / "rs.dcm", ids, NAMES)
    centres = np.stack(np.meshgrid(range(12), range(9), indexing="ij"), -1).reshape(-1, 2)
    centres = centres * [SPACING[1], SPACING[0]] + [-40.0, -60.0]
    file = read_structure_set(tmp_path / "rs.dcm")
    assert file.names == ("liver", "tumour", "left kidney")
    for label, contours in zip((1, 4, 7), file.contours, strict=True):
        filled = np.zeros(ids.shape, bool)
        for points in contours:
            inside = Polygon(points[:, :2], closed=False).contains_points(centres)
            filled[..., round((points[0, 2] - 100) / 2.5)] |= inside.reshape(12, 9)
        np.testing.assert_array_equal(filled, ids == label)


def test_every_contour_names_the_image_it_lies_on(tmp_path):
    slices = make_series(cosines=ORIENTATIONS["oblique"])
    SourceSeries(save_series(tmp_path / "s", slices)).write_structures(tmp_path / "rs.dcm", make_ids(), NAMES)
    normal = np.cross(*np.reshape(ORIENTATIONS["oblique"], (2, 3)))
    depth_of = {item.SOPInstanceUID: float(np.dot(item.ImagePositionPatient, normal)) for item in slices}
    written = pydicom.dcmread(tmp_path / "rs.dcm")
    count = 0
    for roi in written.ROIContourSequence[:3]:
        for item in roi.ContourSequence:
            depths = np.reshape(item.ContourData, (-1, 3)).astype(float) @ normal
            uid = item.ContourImageSequence[0].ReferencedSOPInstanceUID
            np.testing.assert_allclose(depths, depth_of[uid], atol=1e-3)
            assert item.NumberOfContourPoints == len(depths)
            count += 1
    assert count > 20


def test_what_the_object_says(tmp_path):
    slices = make_series(cosines=AXIAL)
    SourceSeries(save_series(tmp_path / "s", slices)).write_structures(tmp_path / "rs.dcm", make_ids(), NAMES)
    written = pydicom.dcmread(tmp_path / "rs.dcm")
    assert (written.Modality, written.ApprovalStatus) == ("RTSTRUCT", "UNAPPROVED")
    assert written.StructureSetDescription.startswith("EXPERIMENTAL")
    assert "experimental" in written.SeriesDescription
    assert (written.StudyInstanceUID, written.FrameOfReferenceUID) == ("1.9", "1.9.7")
    assert written.SeriesInstanceUID not in ("1.9.1", "")
    names = [(item.ROINumber, item.ROIName) for item in written.StructureSetROISequence]
    assert names == [(1, "liver"), (2, "tumour"), (3, "left kidney"), (4, "absent")]
    colours = [tuple(item.ROIDisplayColor) for item in written.ROIContourSequence]
    assert colours == list(label_colours(NAMES).values())
    assert "ContourSequence" not in written.ROIContourSequence[3]
    assert [item.RTROIInterpretedType for item in written.RTROIObservationsSequence] == [""] * 4
    contents = read_contents(tmp_path / "rs.dcm")
    assert contents.referenced == {"1.9.1"}
    assert contents.frames_of_reference == {"1.9.7"}
    study = written.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert [item.ReferencedSOPInstanceUID for item in images] == [item.SOPInstanceUID for item in slices]


def test_only_what_dicom_demands_is_copied(tmp_path):
    folder = save_series(tmp_path / "s", make_series(**PATIENT))
    SourceSeries(folder).write_structures(tmp_path / "rs.dcm", make_ids(), NAMES)
    written = pydicom.dcmread(tmp_path / "rs.dcm")
    assert (str(written.PatientName), written.PatientID) == ("ZZPHI01^ANNA", "ZZPHI02")
    found = re.findall(rb"ZZPHI\d\d", (tmp_path / "rs.dcm").read_bytes())
    assert sorted(found) == [b"ZZPHI01", b"ZZPHI02"]


def test_letters_of_other_alphabets_survive(tmp_path):
    slices = make_series(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    names = {0: "background", 1: "печень", 4: "tumour\\core", 7: "x" * 80}
    SourceSeries(save_series(tmp_path / "s", slices)).write_structures(tmp_path / "rs.dcm", make_ids(), names)
    written = pydicom.dcmread(tmp_path / "rs.dcm")
    assert str(written.PatientName) == "Müller^Jörg"
    assert [i.ROIName for i in written.StructureSetROISequence] == ["печень", "tumour_core", "x" * 64]


def test_a_contour_of_more_than_65534_characters(tmp_path):
    """More than an element with a stated type can hold, which would come out as one of unknown type."""
    source = make_series()[0]
    source.Columns, source.Rows = 101, 91
    labels = np.ones((101, 91, 1), np.uint8)
    labels[1:-1:2, 1:-1:2] = 0  # 50 x 45 holes in one contour
    affine = np.diag([-0.7654321, -0.7654321, 2.5, 1.0])
    affine[:3, 3] = (120.1234567, 130.7654321, -900.5)
    header = StructureSetHeader(("x",), "d", "s", 1)
    slices = [SliceReference(source.SOPClassUID, source.SOPInstanceUID)]
    made = make_structure_set(source, slices, labels, affine, {1: "sieve"}, header)
    write_structure_set(tmp_path / "rs.dcm", made)
    written = pydicom.dcmread(tmp_path / "rs.dcm")
    (item,) = written.ROIContourSequence[0].ContourSequence
    assert item["ContourData"].VR == "DS"
    assert len("\\".join(map(str, item.ContourData))) > 65_534
    # 8 corners of the outline, and for each hole its 4 and the 4 ends of its channel.
    assert len(item.ContourData) == 3 * (8 + 50 * 45 * 8)
    image = Volume(np.zeros((1, 101, 91, 1), np.float32), affine)
    np.testing.assert_array_equal(read_structure_set(tmp_path / "rs.dcm").mask(0, image), labels == 1)


def test_nothing_found_is_an_object_too(tmp_path):
    folder = save_series(tmp_path / "s", make_series())
    SourceSeries(folder).write_structures(tmp_path / "rs.dcm", np.zeros((12, 9, 8), np.uint8), NAMES)
    assert len(pydicom.dcmread(tmp_path / "rs.dcm").StructureSetROISequence) == 4
    assert read_structure_set(tmp_path / "rs.dcm").names == ()


def test_refusals(tmp_path):
    series = SourceSeries(save_series(tmp_path / "s", make_series()))
    out = tmp_path / "rs.dcm"
    with pytest.raises(LabelError, match=r"ids \[9\]"):
        series.write_structures(out, np.full((12, 9, 8), 9, np.uint8), NAMES)
    with pytest.raises(LabelError, match="besides the background"):
        series.write_structures(out, np.zeros((12, 9, 8), np.uint8), {0: "background"})
    with pytest.raises(GeometryError, match=r"\(12, 9, 7\) for \(12, 9, 8\)"):
        series.write_structures(out, np.zeros((12, 9, 7), np.uint8), NAMES)
    with pytest.raises(GeometryError, match=r"\(9, 12, 8\)"):
        series.write_structures(out, np.zeros((9, 12, 8), np.uint8), NAMES)
    with pytest.raises(LabelError, match="ids 1 and 4") as info:
        series.write_structures(out, make_ids(), {**NAMES, 1: "x" * 64 + "1", 4: "x" * 64 + "4"})
    assert info.value.code == "label-names"
    assert not out.exists()


def test_incomplete_headers_are_refused_without_quoting_them(tmp_path):
    series = SourceSeries(save_series(tmp_path / "s", make_series(patient="ZZPHI02")))
    del series.datasets[0].StudyInstanceUID
    with pytest.raises(VolumeError) as caught:
        series.write_structures(tmp_path / "rs.dcm", make_ids(), NAMES)
    assert caught.value.code == "rtstruct-source"
    assert "ZZPHI" not in str(caught.value)
    assert not (tmp_path / "rs.dcm").exists()


def test_labels_in_dust_are_refused_before_they_fill_the_memory(tmp_path, monkeypatch):
    """800 bytes for each coordinate once made 15 GB of a noisy label map of 256 x 256 x 128."""
    slices = make_series()
    folder = save_series(tmp_path / "s", slices)
    dust = np.zeros((12, 9, 8), np.uint8)
    dust[::2, ::2, :3] = 1  # 30 single voxels in each of three slices
    monkeypatch.setattr("sparseg.volumes.dicom_rtstruct_writer.MAX_CONTOURS", 90)
    SourceSeries(folder).write_structures(tmp_path / "rs.dcm", dust, {1: "dust"})
    dust[5, 5, 6] = 1
    with pytest.raises(LabelError, match=r"at most 90 contours.*first 7 of 8 slices.*--min-ml") as caught:
        SourceSeries(folder).write_structures(tmp_path / "more.dcm", dust, {1: "dust"})
    assert caught.value.code == "rtstruct-size"
    assert not (tmp_path / "more.dcm").exists()


def test_coordinates_are_one_text_while_the_object_is_put_together():
    source = make_series()[0]
    source.Columns, source.Rows = 101, 101
    labels = np.ones((101, 101, 1), np.uint8)
    labels[1:-1:2, 1:-1:2] = 0  # 50 x 50 holes in one contour of 20,008 points
    slices = [SliceReference(source.SOPClassUID, source.SOPInstanceUID)]
    header = StructureSetHeader(("x",), "d", "s", 1)
    tracemalloc.start()
    made = make_structure_set(source, slices, labels, np.eye(4), {1: "sieve"}, header)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints == 20_008
    assert held / 20_008 < 50  # as numbers of pydicom they took 800
