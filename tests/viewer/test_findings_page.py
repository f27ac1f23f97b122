"""The page of a check: pictures are right in millimetres, the file needs nothing and trusts nobody."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from predict.grids import AXIS_ORDERS, stored_as, turned
from sparseg.datasets.check import check_dataset
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.findings import Finding
from sparseg.datasets.inspect import CaseReport
from sparseg.datasets.nonfinite import NONFINITE_MARK
from sparseg.viewer.findings_page import write_findings_page
from sparseg.viewer.lenient import show_image, show_labels
from sparseg.viewer.slices import (
    Row,
    draw_planes,
    label_centre,
    labelled_box,
    sample,
    share_outside,
    window_of,
)
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.volume import Volume

LABELS = {0: "background", 1: "liver", 2: "tumor"}
SHAPE, SPACING = (16, 20, 12), np.array([2.0, 1.0, 3.0])
ORIGIN = np.array([-20.0, -15.0, -10.0])
# Voxels of the box on the RAS grid: off the middle on every axis, so any flip moves it.
BOX = (slice(9, 14), slice(4, 9), slice(6, 10))
AXES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}


def volumes(value=1):
    """Return an image with one bright box and its label map, on a RAS grid of 32 x 20 x 36 mm."""
    ids = np.zeros((1, *SHAPE), np.int32)
    ids[(0, *BOX)] = value
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = ORIGIN
    return Volume((ids == value) * np.float32(100), affine), Volume(ids, affine.copy())


def moved(volume, shift):
    affine = volume.affine.copy()
    affine[:3, 3] += shift
    return Volume(volume.array, affine)


def write_labels(path, labels):
    write_label_map(path, np.ascontiguousarray(labels.array[0]).astype(np.uint8), labels.affine)
    return path


def write_float(path, volume):
    """Any float values, NaN included, under a sound header."""
    plain = path.with_name("plain.nii")
    write_image(plain, Volume(np.full_like(volume.array, 0.5, np.float32), volume.affine))
    head = plain.read_bytes()[:352]
    plain.unlink()
    path.write_bytes(head + volume.array[0].astype("<f4").tobytes(order="F"))
    return path


@pytest.fixture
def drawn(monkeypatch):
    """Return the figures that were saved."""
    figures = []
    honest = Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def panels(figure: Figure) -> list[dict[str, Axes]]:
    """Return plane -> axes of each row."""
    planes = [(axes.get_title().split()[-1], axes) for axes in figure.axes]
    return [dict(planes[start : start + 3]) for start in range(0, len(planes), 3)]


def outline_box(axes: Axes) -> np.ndarray:
    """Return ((left, right), (bottom, top)) of all outlines in mm of the picture."""
    vertices = np.concatenate([path.vertices for item in axes.collections for path in item.get_paths()])
    return np.stack([vertices.min(axis=0), vertices.max(axis=0)], axis=1)


def bright_box(axes: Axes) -> np.ndarray:
    """Return the same of the bright pixels."""
    picture = axes.images[0].get_array()
    left, right, bottom, top = axes.images[0].get_extent()
    rows, columns = np.nonzero((picture > 0.9).all(axis=-1))
    wide, high = (right - left) / picture.shape[1], (top - bottom) / picture.shape[0]
    return np.array(
        [
            [left + columns.min() * wide, left + (columns.max() + 1) * wide],
            [bottom + rows.min() * high, bottom + (rows.max() + 1) * high],
        ]
    )


def true_box(shift=(0, 0, 0)):
    """Return `[3,2]` mm of the box from the outer corner of the first voxel."""
    edges = np.array([[part.start, part.stop] for part in BOX]) - 0.5
    return edges * SPACING[:, None] + np.array(shift)[:, None]


# geometry of the pictures


@pytest.mark.parametrize(("order", "signs"), AXIS_ORDERS[::7])
@pytest.mark.parametrize("oblique", [False, True])
def test_image_and_outline_lie_where_they_are_in_the_patient(drawn, order, signs, oblique):
    """Stored in whatever order, on a turned grid or not, shifted or not: the picture is the same in mm."""
    image, labels = volumes()
    shift = np.array([-4.0, 2.0, 4.0])
    shifted = moved(labels, shift)
    if oblique:
        image, shifted = (turned(volume, (10, -12, 8)) for volume in (image, shifted))
    stored = stored_as(image, order, signs), stored_as(shifted, (1, 2, 0), (1, -1, -1))
    png = draw_planes([Row("image", stored[0], [stored[1]])], label_centre([stored[1]]), LABELS)
    (planes,) = panels(drawn[0])
    for plane, (across, up) in AXES.items():
        picked = [across, up]
        pixel = 40 / 320
        np.testing.assert_allclose(bright_box(planes[plane]), true_box()[picked], atol=2 * pixel)
        np.testing.assert_allclose(outline_box(planes[plane]), true_box(shift)[picked], atol=2 * pixel)
        assert planes[plane].xaxis_inverted() == (plane != "sagittal")
        letters = "".join(text.get_text() for text in planes[plane].texts)
        assert letters == {"axial": "RLPA", "coronal": "RLIS", "sagittal": "PAIS"}[plane]
    # A millimetre is as long across as up, in all planes.
    figure = drawn[0]
    scales = []
    for axes in figure.axes:
        place = axes.get_position()
        (left, right), (bottom, top) = sorted(axes.get_xlim()), axes.get_ylim()
        inches = figure.get_size_inches()
        scales += [place.width * inches[0] / (right - left), place.height * inches[1] / (top - bottom)]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-6)
    assert imread(io.BytesIO(png)).shape[1] == 768


def test_patients_right_is_on_the_left_in_the_pixels():
    image, _ = volumes()
    png = imread(io.BytesIO(draw_planes([Row("", image)], ORIGIN + SPACING * 8, LABELS, cross=False)))
    gray = png[..., :3].mean(axis=-1)
    bright = (gray > 0.9) & (np.ptp(png[..., :3], axis=-1) < 0.01)
    axial = bright[25:, : int(768 * 32 / 84)]
    columns, rows = np.flatnonzero(axial.sum(axis=0) > 10), np.flatnonzero(axial.sum(axis=1) > 10)
    # The box is at the patient's right (x grows to the right) and, with y 4-8 of 20, behind.
    assert columns.mean() < 0.5 * axial.shape[1]
    assert rows.mean() > 20 / 36 / 2 * gray.shape[0] * 0.8


def test_cross_and_planes_beyond_the_image(drawn):
    image, labels = volumes()
    place = ORIGIN + np.array([4.0, 3.0, 6.0])
    draw_planes([Row("image", image, [labels])], place, LABELS)
    for plane, (across, up) in AXES.items():
        (line,) = panels(drawn[0])[0][plane].lines
        np.testing.assert_allclose(
            [line.get_xdata()[0], line.get_ydata()[0]], np.array([4, 3, 6])[[across, up]]
        )
    far = moved(labels, [-30, 0, 0])
    draw_planes([Row("image", image, [far])], label_centre([far]), LABELS)
    (planes,) = panels(drawn[1])
    np.testing.assert_allclose(outline_box(planes["axial"]), true_box([-30, 0, 0])[:2], atol=0.4)
    assert planes["axial"].get_xlim()[1] == pytest.approx(true_box([-30, 0, 0])[0, 0])
    assert not planes["sagittal"].collections
    assert share_outside(image, label_centre([far])[None]) == 1
    assert share_outside(image, label_centre([labels])[None]) == 0


def test_where_labels_are():
    _, labels = volumes()
    first, last = (
        ORIGIN + SPACING * [getattr(p, end) for p in BOX] - SPACING / 2 for end in ("start", "stop")
    )
    box = labelled_box(labels)
    np.testing.assert_allclose([box.min(axis=0), box.max(axis=0)], [first, last])
    empty = Volume(0 * labels.array, labels.affine)
    assert labelled_box(empty) is None
    assert label_centre([empty]) is None
    other = moved(labels, [60, 0, 0])
    centre = label_centre([empty, labels, other])
    values, inside = zip(*(sample(volume, centre[None]) for volume in (labels, other)), strict=True)
    assert max(int(v[0]) * int(i[0]) for v, i in zip(values, inside, strict=True)) == 1


def test_window_and_colours_of_odd_images(drawn):
    image, labels = volumes()
    values = np.arange(image.array.size, dtype=np.float32).reshape(image.array.shape)
    low, high = window_of(Volume(values, image.affine))
    assert (low, high) == pytest.approx((0.01 * values.max(), 0.99 * values.max()))
    assert window_of(Volume(0 * values + 7, image.affine)) == (6, 8)
    lonely = 0 * values
    lonely[0, 3, 3, 3] = 5
    assert window_of(Volume(lonely, image.affine)) == (0, 5)
    values[0, 8, 10, 6] = NONFINITE_MARK
    assert window_of(Volume(values, image.affine))[1] < values.size
    assert window_of(Volume(0 * values + NONFINITE_MARK, image.affine)) == (0, 1)
    draw_planes([Row("image", Volume(values, image.affine), [labels])], ORIGIN + SPACING * [8, 10, 6], {})
    picture = panels(drawn[0])[0]["axial"].images[0].get_array()
    magenta = (picture == (1, 0, 1)).all(axis=-1)
    left, right, bottom, top = panels(drawn[0])[0]["axial"].images[0].get_extent()
    area = magenta.mean() * (right - left) * (top - bottom)
    assert area == pytest.approx(SPACING[0] * SPACING[1], rel=0.15)


# reading


def test_lenient_reading_tells_its_liberties(tmp_path, caplog):
    image, labels = volumes()
    holes = image.array.copy()
    holes[0, 1, 2, 3] = np.nan
    shown = show_image(write_float(tmp_path / "nan.nii", Volume(holes, image.affine)))
    assert shown.volume.array[0, 1, 2, 3] == NONFINITE_MARK
    assert "magenta" in shown.notes[0]
    assert caplog.records == []
    raw = bytearray((tmp_path / "nan.nii").read_bytes())
    raw[252:254] = raw[254:256] = b"\0\0"
    (tmp_path / "none.nii").write_bytes(raw)
    shown = show_image(tmp_path / "none.nii")
    np.testing.assert_allclose(np.diag(shown.volume.affine)[:3], SPACING)
    assert len(shown.notes) == 2
    assert "as if RAS" in " ".join(shown.notes)
    write_image(tmp_path / "cut.nii.gz", image)
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "cut.nii.gz").read_bytes()[:200])
    shown = show_image(tmp_path / "cut.nii.gz")
    assert shown.volume is None
    assert "early end" in shown.notes[0]
    floats = labels.array * np.float32(0.8)
    case = Case("a", (tmp_path / "nan.nii",), write_float(tmp_path / "f.nii", Volume(floats, labels.affine)))
    (shown,) = show_labels(case, Dataset("d", ("CT",), LABELS, (case,), (), tmp_path), None)
    np.testing.assert_array_equal(shown.volume.array, labels.array)
    assert "rounded" in shown.notes[0]


def test_masks_get_the_ids_of_their_structures(tmp_path):
    _, labels = volumes()
    files = [write_labels(tmp_path / f"m{i}.nii.gz", moved(labels, [i, 0, 0])) for i in range(2)]
    case = Case("a", (), masks=(("tumor", files[0]), ("liver", files[1])))
    shown = show_labels(case, Dataset("d", ("CT",), LABELS, (case,), (), tmp_path), None)
    assert [sorted(np.unique(file.volume.array)) for file in shown] == [[0, 2], [0, 1]]
    assert [float(file.volume.affine[0, 3]) for file in shown] == [-20, -19]


# the page


class Parser(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture
def bad(tmp_path):
    """A dataset with one fault per case."""
    root = tmp_path / "data"
    root.mkdir()
    image, labels = volumes()
    other = Volume(image.array + np.linspace(0, 1, 12, dtype=np.float32), image.affine)
    parts = {
        "good": (image, labels),
        "twin": (image, labels),
        "shifted": (Volume(image.array + 1, image.affine), moved(labels, [6, 0, 0])),
        "<b>cut": (other, labels),
    }
    cases = []
    for name, (picture, ids) in parts.items():
        plain = name.strip("<b>")
        write_image(root / f"{plain}.nii.gz", picture)
        label = write_labels(root / f"{plain}_label.nii.gz", ids)
        cases.append(Case(name, (root / f"{plain}.nii.gz",), label))
    cut = cases[3].image
    cut.write_bytes(cut.read_bytes()[:-40])
    return Dataset("<script>x</script>", ("CT",), LABELS, tuple(cases), (), root, layout="test")


def test_the_page_shows_every_finding_and_needs_nothing(bad, tmp_path, drawn):
    result = check_dataset(bad, workers=1, memory=tmp_path / "memory")
    seen = []
    out = tmp_path / "out"
    out.mkdir()
    write_findings_page(out / "check.html", bad, result.reports, result.findings, on_finding=seen.append)
    assert [path.name for path in out.iterdir()] == ["check.html"]
    text = (out / "check.html").read_text()
    assert sorted(seen) == sorted(f"{f.case or bad.name}: {f.code}" for f in result.findings)
    tags = Parser(text).tags
    names = {tag for tag, _ in tags}
    assert not names & {"script", "link", "iframe", "b", "object"}
    assert ("meta", {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    }) in tags  # fmt: skip
    assert "<script>" not in text
    assert "url(" not in text
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(value.startswith(("data:image/png;base64,", "#f")) for value in sources)
    anchors = {attributes["id"] for tag, attributes in tags if tag == "section"}
    assert {value[1:] for value in sources if value.startswith("#")} == anchors
    assert len(anchors) == len(result.findings)
    codes = [finding.code for finding in result.findings]
    assert {"grid-position", "case-duplicate"} <= set(codes)
    for source in sources:
        if source.startswith("data"):
            assert imread(io.BytesIO(base64.b64decode(source.partition(",")[2]))).shape[1] == 768
    assert len(drawn) == sum(finding.case != "" for finding in result.findings)
    assert "early end" in text
    assert "labels alone, axial" in [axes.get_title() for figure in drawn for axes in figure.axes]
    (double,) = [figure for figure in drawn if len(figure.axes) == 6]
    assert [axes.get_title() for axes in double.axes[::3]] == ["twin, axial", "good, axial"]


def test_pictures_are_limited_and_findings_of_the_set_have_none(bad, tmp_path, drawn):
    findings = [
        Finding("set", "note", "rule", "remedy"),
        Finding("a", "warning", "later", "remedy", "good"),
        Finding("b", "error", "sooner", "remedy", "shifted", position_mm=(900.0, 0.0, 0.0)),
    ]
    reports = [CaseReport(case.name, None) for case in bad.cases]
    write_findings_page(tmp_path / "c.html", bad, reports, findings, max_pictures=1)
    text = (tmp_path / "c.html").read_text()
    assert len(drawn) == 1
    assert "The place lies outside the image" in text
    assert re.findall(r'<section id="f(\d)"><h2 class="(\w+)"', text) == [
        ("0", "error"), ("1", "warning"), ("2", "note"),
    ]  # fmt: skip
    assert text.count("the page shows 1.") == 1
    assert "1 error, 1 warning, 1 note" in text
    assert "0 of 4 cases can be used" in text


def test_a_channel_on_another_grid_gets_a_row_of_its_own(bad, tmp_path, drawn):
    image, _ = volumes()
    second = bad.root / "second.nii.gz"
    write_image(second, moved(image, [0, 5, 0]))
    case = replace(bad.training[0], images=(bad.training[0].image, second))
    dataset = replace(bad, channels=("T1", "T2"), training=(case,))
    finding = Finding("grid-position", "error", "rule", "remedy", "good", "second.nii.gz")
    write_findings_page(tmp_path / "c.html", dataset, [CaseReport("good", None)], [finding])
    first, other = panels(drawn[0])
    assert [row["axial"].get_title() for row in (first, other)] == ["T1, axial", "T2, axial"]
    shift = bright_box(other["axial"]) - bright_box(first["axial"])
    np.testing.assert_allclose(shift, [[0, 0], [5, 5]], atol=0.15)


def test_nothing_found_and_nothing_readable(bad, tmp_path, drawn):
    write_findings_page(tmp_path / "c.html", bad, [], [])
    assert "Nothing was found" in (tmp_path / "c.html").read_text()
    for path in bad.root.iterdir():
        path.unlink()
    finding = Finding("file-missing", "error", "rule", "remedy", "good")
    write_findings_page(tmp_path / "c.html", bad, [], [finding])
    text = (tmp_path / "c.html").read_text()
    assert text.count("not shown; ") == 2
    assert drawn == []
