"""DICOM series and SEG objects, compared in millimetres and voxel by voxel."""

import highdicom
import numpy as np
import pydicom
import pytest

from sparseg.datasets.facts import measure
from sparseg.datasets.writers.dicom_seg import make_segmentation
from sparseg.datasets.writers.dicom_series import Identity, make_series
from sparseg.datasets.writers.write import write_dataset
from sparseg.datasets.writers.written import WrittenCase
from sparseg.errors import GeometryError
from sparseg.volumes.dicom import read_dicom_series
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 2: "tumor", 7: "liver"}
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(degrees, axis):
    angle = np.radians(degrees)
    matrix, (a, b) = np.eye(4), [i for i in range(3) if i != axis]
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def case(affine_change):
    image, labels = make_phantom((9, 8, 7), seed=3)
    affine = affine_change @ image.affine
    array = np.rint(image.array).astype(np.int16)
    ids = np.array([0, 2, 7], np.int32)[labels.array]
    return WrittenCase("synthetic_1", Volume(array, affine), Volume(ids, affine))


CHANGES = {
    "axial": np.eye(4),
    "flipped": np.diag([-1.0, 1.0, -1.0, 1.0]),
    "sagittal": np.eye(4)[[2, 0, 1, 3]],
    "oblique": rotation(20, 0) @ rotation(15, 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_series_reads_back_in_its_place(change, tmp_path):
    written = case(CHANGES[change])
    about = {"name": "set", "channels": ("CT",), "labels": LABELS, "synthetic": "made from a phantom"}
    root = write_dataset("dicom", [written], tmp_path / "set", **about)
    read = read_dicom_series(root / "synthetic_1")
    assert measure(read, None).content_key == measure(written.image, None).content_key
    expected, got = measure(written.image, None).affine, measure(read, None).affine
    assert np.abs(np.subtract(expected, got)).max() <= 1e-3
    # The SEG object, by highdicom's own geometry: every labelled voxel at the same millimetres.
    volume = highdicom.seg.segread(root / "synthetic_1" / "labels.dcm").get_volume(combine_segments=True)
    for number, label_id in ((1, 2), (2, 7)):
        in_seg = np.argwhere(volume.array == number)
        in_case = np.argwhere(written.labels.array[0] == label_id)
        assert len(in_seg) == len(in_case) > 5
        seg_mm = in_seg @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        affine = _RAS_TO_LPS @ written.labels.affine
        case_mm = in_case @ affine[:3, :3].T + affine[:3, 3]
        order_seg = np.lexsort(np.round(seg_mm, 2).T)
        order_case = np.lexsort(np.round(case_mm, 2).T)
        assert np.abs(seg_mm[order_seg] - case_mm[order_case]).max() < 1e-3


def test_headers_say_synthetic_and_name_the_segments(tmp_path):
    about = {"name": "set", "channels": ("MR",), "labels": LABELS, "synthetic": "made from a phantom"}
    root = write_dataset("dicom", [case(np.eye(4))], tmp_path / "set", **about)
    first, second = (pydicom.dcmread(root / f"synthetic_1/000{n}.dcm") for n in (1, 2))
    assert (first.SeriesDescription, first.Modality) == ("SYNTHETIC", "MR")
    assert first.ImageType[0] == "DERIVED"
    assert first.DerivationDescription == "synthetic: made from a phantom"
    assert (first.PatientID, str(first.PatientName)) == ("synthetic_1", "SYNTHETIC^")
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    labels = pydicom.dcmread(root / "synthetic_1/labels.dcm")
    assert [item.SegmentLabel for item in labels.SegmentSequence] == ["tumor", "liver"]
    assert labels.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert labels.StudyInstanceUID == first.StudyInstanceUID
    assert labels.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
    assert labels.SeriesDescription == "SYNTHETIC labels"


def test_case_without_a_structure_has_an_empty_object():
    written = case(np.eye(4))
    identity = Identity("set", "a", "a", "CT", synthetic=False, derivation="x")
    empty = Volume(written.labels.array * 0, written.labels.affine)
    made = make_segmentation(make_series(written.image, identity), empty, LABELS, identity)
    assert len(made.SegmentSequence) == 2
    assert not any(made.PixelData)


def test_uids_differ_between_cases_and_datasets():
    identities = [Identity(d, c, "p", "CT", True, "x") for d in "ab" for c in "cd"]
    uids = {identity.uid(identity.case, "series") for identity in identities}
    assert len(uids) == 4
    assert identities[0].uid("c", "series") in uids


def test_sheared_grid_is_refused():
    written = case(np.eye(4))
    affine = written.image.affine.copy()
    affine[1, 2] = 0.6
    with pytest.raises(GeometryError, match="right angles"):
        make_series(Volume(written.image.array, affine), Identity("a", "b", "c", "CT", True, "x"))
