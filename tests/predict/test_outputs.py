"""Label files: names and colours read back, the file of 3D Slicer in the right place, clean-up on request."""

from __future__ import annotations

import gzip
import json
import struct

import nibabel as nib
import numpy as np
import pytest

from predict.grids import turned
from predict.threshold_model import threshold_predictor
from sparseg.errors import ConfigError, LabelError, VolumeError
from sparseg.predict.batch import predict_cases
from sparseg.predict.cleanup import Cleanup
from sparseg.predict.colours import colour_of, label_colours
from sparseg.predict.inputs import collect_cases
from sparseg.predict.outputs import write_labels
from sparseg.predict.settings import PredictSettings
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.io import read_labels
from sparseg.volumes.nifti_labels import LabelTable, read_label_names, read_label_table
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.nrrd_header import parse_nrrd
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.seg_nrrd import write_seg_nrrd
from sparseg.volumes.volume import Volume

NAMES = {0: "background", 1: "liver", 2: "Left Kidney", 300: "Läsion"}


class Silent:
    """A monitor that watches nothing."""

    def on_start(self, _case):
        return lambda _done, _total: None

    def on_done(self, _case, _result):
        return None

    def on_error(self, _case, _error):
        return None


def some_labels(dtype=np.uint16):
    labels = np.zeros((9, 7, 5), dtype)
    labels[1:4, 2:5, 1:3] = 1
    labels[6:, 0, 4] = 2
    return labels


def oblique():
    affine = np.diag([-0.7, 0.8, 2.5, 1.0])
    affine[:3, 3] = (101.25, -33.1, 1e-3)
    return turned(Volume(some_labels()[None], affine), (12.0, -20.0, 33.0)).affine


def keys_of(path):
    """Key-value pairs of a NRRD header, as plain text."""
    head, _, _ = path.read_bytes().partition(b"\n\n")
    return dict(line.split(":=", 1) for line in head.decode().splitlines() if ":=" in line)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("right kidney", "kidney_right"),
        ("Liver", "liver"),
        ("tumour", "tumor"),
        ("inferior vena cava", "postcava"),
        ("urinary_bladder", "bladder"),
        ("some new organ", "Some-new_organ"),
    ],
)
def test_spelling_does_not_change_a_colour(one, other):
    assert colour_of(one) == colour_of(other)


def test_colours_tell_labels_apart_and_stay():
    organs = "spleen,right kidney,left kidney,gallbladder,esophagus,liver,stomach,aorta,postcava,pancreas"
    others = "right adrenal gland,left adrenal gland,duodenum,bladder,prostate,lung left,lung right,zzz,yyy"
    names = [*organs.split(","), *others.split(",")]
    colours = label_colours({0: "background", **dict(enumerate(names, start=1))})
    assert list(colours) == list(range(1, len(names) + 1))
    assert len(set(colours.values())) == len(names)
    assert all(type(part) is int and 0 <= part <= 255 for colour in colours.values() for part in colour)
    # Frozen: pictures of different versions are to be compared.
    assert colour_of("liver") == (148, 72, 44)
    assert colour_of("left kidney") == (199, 135, 110)
    assert colour_of("a structure of no table") == (111, 213, 57)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ"])
def test_names_and_colours_come_back(tmp_path, name):
    write_labels(tmp_path / "new" / name, some_labels(), oblique(), NAMES)
    table = read_label_table(tmp_path / "new" / name)
    assert table == LabelTable(NAMES, label_colours(NAMES))
    assert read_label_names(tmp_path / "new" / name) == NAMES


def test_a_file_of_an_earlier_version_has_names_only(tmp_path):
    write_label_map(tmp_path / "a.nii.gz", some_labels(), np.eye(4), label_names=NAMES)
    assert read_label_table(tmp_path / "a.nii.gz") == LabelTable(NAMES, {})


def test_a_file_without_names(tmp_path):
    write_label_map(tmp_path / "a.nii", some_labels(), np.eye(4))
    assert read_label_table(tmp_path / "a.nii") == LabelTable()


@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_files_of_other_programs(tmp_path, version, order):
    header = version.header_class(endianness=order)
    image = version(some_labels(np.dtype("u2").newbyteorder(order)), np.eye(4), header)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"\xff not ours"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b'["neither"]'))
    ours = b'{"labels": {"2": "a", "x": "b", "3": 4}, "colours": {"2": [1, 2, 3], "3": [1, 2, 256]}}'
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", ours))
    nib.save(image, tmp_path / "a.nii")
    assert read_label_table(tmp_path / "a.nii") == LabelTable({2: "a"}, {2: (1, 2, 3)})


@pytest.mark.parametrize("size", [-16, 0, 8, 2**30])
def test_an_extension_of_an_impossible_size_is_passed_over(tmp_path, size):
    write_label_map(tmp_path / "a.nii", some_labels(), np.eye(4), label_names=NAMES)
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<i", raw, 352, size)
    (tmp_path / "a.nii").write_bytes(raw)
    assert read_label_names(tmp_path / "a.nii") == {}


def test_what_is_not_nifti_is_refused(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"no")
    with pytest.raises(VolumeError):
        read_label_names(tmp_path / "a.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_slicer_file_has_every_voxel_at_its_millimetre(tmp_path, dtype):
    labels, affine = some_labels(dtype), oblique()
    names = {label: name for label, name in NAMES.items() if label <= np.iinfo(dtype).max}
    path = tmp_path / "a.seg.nrrd"
    write_labels(path, labels, affine, names)
    header = parse_nrrd(path.read_bytes(), path)
    assert (header.dtype, header.sizes, header.packing) == (np.dtype(dtype), labels.shape, "zlib")
    np.testing.assert_allclose(header.affine, affine, rtol=1e-14, atol=1e-14)
    back = read_labels(path)
    np.testing.assert_array_equal(back.array[0], labels)
    for label in (1, 2):
        np.testing.assert_allclose(
            voxel_to_world(back.affine, np.argwhere(back.array[0] == label)),
            voxel_to_world(affine, np.argwhere(labels == label)),
            atol=1e-9,
        )


def test_slicer_file_for_simpleitk(tmp_path):
    import SimpleITK as sitk  # noqa: N813

    affine = np.diag([-0.7, 0.8, 2.5, 1.0])
    affine[:3, 3] = (10.0, 20.0, 30.0)
    write_labels(tmp_path / "a.seg.nrrd", some_labels(), affine, NAMES)
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), some_labels())
    assert image.GetOrigin() == (-10.0, -20.0, 30.0)
    assert image.GetSpacing() == (0.7, 0.8, 2.5)
    assert image.GetDirection() == (1, 0, 0, 0, -1, 0, 0, 0, 1)
    assert image.GetMetaData("Segment0_Name") == "liver"


def test_segments_of_a_slicer_file(tmp_path):
    write_labels(tmp_path / "a.seg.nrrd", some_labels(), np.eye(4), NAMES)
    keys = keys_of(tmp_path / "a.seg.nrrd")
    assert [keys[f"Segment{n}_Name"] for n in range(3)] == ["liver", "Left Kidney", "Läsion"]
    assert [keys[f"Segment{n}_LabelValue"] for n in range(3)] == ["1", "2", "300"]
    assert [keys[f"Segment{n}_Layer"] for n in range(3)] == ["0", "0", "0"]
    assert len({keys[f"Segment{n}_ID"] for n in range(3)}) == 3
    assert keys["Segment0_Extent"] == "1 3 2 4 1 2"
    assert keys["Segment1_Extent"] == "6 8 0 0 4 4"
    assert keys["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    colour = [float(part) for part in keys["Segment0_Color"].split()]
    np.testing.assert_allclose(np.multiply(colour, 255), colour_of("liver"), atol=1e-3)
    assert "Segment3_ID" not in keys
    assert keys["Segmentation_SourceRepresentation"] == "Binary labelmap"


def test_equal_content_gives_equal_bytes_without_time_or_name(tmp_path):
    for name in ("a", "b"):
        write_labels(tmp_path / f"{name}.seg.nrrd", some_labels(), np.eye(4), NAMES)
    first, second = ((tmp_path / f"{name}.seg.nrrd").read_bytes() for name in ("a", "b"))
    assert first == second
    assert gzip.decompress(first.partition(b"\n\n")[2]) == some_labels().tobytes(order="F")


def test_a_name_cannot_add_lines_to_the_header(tmp_path):
    names = {1: "a\nspace: scanner-xyz\r\n\nb\\", 2: "other"}
    write_labels(tmp_path / "a.seg.nrrd", some_labels(np.uint8), np.eye(4), names)
    assert keys_of(tmp_path / "a.seg.nrrd")["Segment0_Name"] == "a\\nspace: scanner-xyz \\n\\nb\\\\"
    np.testing.assert_array_equal(read_labels(tmp_path / "a.seg.nrrd").array[0], some_labels())


@pytest.mark.parametrize(
    ("name", "labels", "names", "error"),
    [
        ("a.nrrd", some_labels(), NAMES, VolumeError),
        ("a.seg.nrrd", some_labels().astype(np.int32), NAMES, LabelError),
        ("a.seg.nrrd", some_labels()[None], NAMES, LabelError),
        ("a.seg.nrrd", some_labels(), {n: f"structure {n}" for n in range(500)}, VolumeError),
        ("a.seg.nrrd", some_labels(), {0: "background", 1: "liver"}, LabelError),
        ("missing/a.seg.nrrd", some_labels(), NAMES, VolumeError),
    ],
    ids=["suffix", "type", "axes", "segments", "id without a name", "folder"],
)
def test_what_cannot_be_a_slicer_file_leaves_nothing(tmp_path, name, labels, names, error):
    with pytest.raises(error) as caught:
        write_seg_nrrd(
            tmp_path / name, labels, np.eye(4), label_names=names, label_colours=label_colours(names)
        )
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_draft_is_never_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sparseg.volumes.seg_nrrd._write_stream",
        lambda file, *, head, labels: file.write(head + gzip.compress((labels + 1).tobytes(order="F"))),
    )
    with pytest.raises(VolumeError, match="read back equal"):
        write_labels(tmp_path / "a.seg.nrrd", some_labels(), np.eye(4), NAMES)
    assert list(tmp_path.iterdir()) == []


def speckled():
    """A phantom's image with a speck of class 2 in a corner, and the labels with and without the speck."""
    image, labels = make_phantom((22, 19, 17), seed=1)
    clean = labels.array[0].astype(np.uint8)
    assert not clean[:3, :3, :3].any()
    image.array[0, 1, 1, 1] = 200.0
    speck = clean.copy()
    speck[1, 1, 1] = 2
    return image, speck, clean


def run_cases(predictor, image, folder, **more):
    write_image(folder / "case.nii.gz", image)
    cases = collect_cases([folder / "case.nii.gz"], folder / "out", **more)
    assert predict_cases(predictor, cases, folder / "out", Silent()) == []
    return json.loads((folder / "out" / "report.json").read_text())["cases"][0]


def test_clean_up_is_off_by_default_and_reported_when_on(monkeypatch, tmp_path):
    image, speck, clean = speckled()
    row = run_cases(threshold_predictor(monkeypatch), image, tmp_path)
    np.testing.assert_array_equal(read_labels(tmp_path / "out/case.nii.gz").array[0], speck)
    assert "cleanup" not in row
    settings = PredictSettings(cleanup=Cleanup(largest_component=("tumor",)))
    row = run_cases(threshold_predictor(monkeypatch, settings), image, tmp_path)
    np.testing.assert_array_equal(read_labels(tmp_path / "out/case.nii.gz").array[0], clean)
    assert row["cleanup"] == {"removed_ml": {"tumor": 0.003}, "filled_ml": {}}
    assert row["volumes_ml"]["tumor"] == round(np.count_nonzero(clean == 2) * 0.003, 3)


def test_clean_up_of_a_class_the_model_has_not_stops_before_any_case(monkeypatch):
    with pytest.raises(ConfigError, match="kidney"):
        threshold_predictor(monkeypatch, PredictSettings(cleanup=Cleanup(fill_holes=("kidney",))))


def test_statistics_beside_the_labels(monkeypatch, tmp_path):
    image, speck, _ = speckled()
    row = run_cases(threshold_predictor(monkeypatch), image, tmp_path)
    text = (tmp_path / "out/statistics.json").read_text()
    cases = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["cases"]
    assert list(cases) == ["case"]
    assert list(cases["case"]) == ["liver", "tumor"]
    tumor = cases["case"]["tumor"]
    places = np.argwhere(speck == 2)
    assert (tumor["label"], tumor["voxels"]) == (2, len(places))
    assert tumor["volume_ml"] == row["volumes_ml"]["tumor"] == round(len(places) * 0.003, 3)
    np.testing.assert_allclose(
        tumor["centroid_mm"], voxel_to_world(image.affine, places).mean(axis=0), atol=1e-3
    )
    assert tumor["box_vox"] == [[int(p.min()), int(p.max())] for p in places.T]
    ends = np.abs(places - (np.array(speck.shape) - 1) / 2) == (np.array(speck.shape) - 1) / 2
    assert tumor["touches_border"] is bool(ends.any())
    assert 0.9 < tumor["mean_confidence"] <= 1


def test_a_failed_case_has_no_statistics(monkeypatch, tmp_path):
    image, _, _ = speckled()
    predictor = threshold_predictor(monkeypatch)
    run_cases(predictor, image, tmp_path)
    (tmp_path / "case.nii.gz").write_bytes(b"")
    cases = collect_cases([tmp_path / "case.nii.gz"], tmp_path / "out")
    assert len(predict_cases(predictor, cases, tmp_path / "out", Silent())) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_slicer_file_from_an_image(monkeypatch, tmp_path):
    image, speck, _ = speckled()
    row = run_cases(threshold_predictor(monkeypatch), image, tmp_path, suffix=".seg.nrrd")
    assert row["output"] == "case.seg.nrrd"
    back = read_labels(tmp_path / "out/case.seg.nrrd")
    np.testing.assert_array_equal(back.array[0], speck)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-6)
    assert keys_of(tmp_path / "out/case.seg.nrrd")["Segment1_Name"] == "tumor"
