"""The overview picture: outlines where the labels are, left and right, up and down as the letters say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from predict.grids import AXIS_ORDERS, stored_as
from sparseg.errors import GeometryError
from sparseg.viewer.overview import draw_overview
from sparseg.volumes.volume import Volume

NAMES = {1: "liver", 2: "spleen"}
SPACING = (1.5, 1.0, 2.5)
SHAPE = (30, 26, 20)
# Box of label 1 in voxels of a RAS grid: over the middle, but off it on every axis, so any flip moves it.
BOX = (slice(13, 27), slice(11, 23), slice(8, 18))


def volumes(value=1):
    """Return an image with one bright box and its label map, on a RAS grid.

    Two corner voxels are label 2, so that the picture shows the whole grid.
    """
    ids = np.zeros((1, *SHAPE), np.int32)
    ids[(0, *BOX)] = value
    ids[0, 0, 0, 0] = ids[0, -1, -1, -1] = 2
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-20.0, -15.0, -10.0)
    return Volume((ids == value) * np.float32(100), affine), Volume(ids, affine)


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


def panels(figure: Figure) -> dict[str, Axes]:
    """Return the middle panel of each plane by its name."""
    found: dict[str, list[Axes]] = {}
    for axes in figure.axes:
        found.setdefault(axes.get_title().split()[-2], []).append(axes)
    return {plane: some[len(some) // 2] for plane, some in found.items()}


def outline_box(axes: Axes) -> tuple[float, float, float, float]:
    """Return (left, right, bottom, top) of the outline in voxels."""
    vertices = np.concatenate([path.vertices for item in axes.collections for path in item.get_paths()])
    (left, bottom), (right, top) = vertices.min(axis=0), vertices.max(axis=0)
    return float(left), float(right), float(bottom), float(top)


def expected_box(across, up):
    """Half a voxel around the box, as a contour at one half between centres runs."""
    return tuple(
        value for part in (across, up) for value in (BOX[part].start - 0.5, BOX[part].stop - 1 + 0.5)
    )


@pytest.mark.parametrize(("order", "signs"), AXIS_ORDERS[::11])
def test_outlines_lie_on_the_labels_in_every_orientation(drawn, tmp_path, order, signs):
    image, labels = (stored_as(volume, order, signs) for volume in volumes())
    draw_overview(tmp_path / "o.png", image, {"prediction": labels}, NAMES, window=(0, 100))
    found = panels(drawn[0])
    for plane, across, up in (("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2)):
        assert outline_box(found[plane]) == pytest.approx(expected_box(across, up)), plane
        shown = found[plane].images[0]
        # The picture under the outline: bright exactly inside the box.
        expected = np.zeros((SHAPE[up], SHAPE[across]))
        expected[BOX[up], BOX[across]] = 100
        np.testing.assert_array_equal(shown.get_array(), expected)
        assert shown.origin == "lower"
        assert found[plane].get_aspect() == pytest.approx(SPACING[up] / SPACING[across])


def test_letters_name_the_borders(drawn, tmp_path):
    image, labels = volumes()
    draw_overview(tmp_path / "o.png", image, {"a": labels}, NAMES, window=(0, 100))
    borders = {plane: (axes.get_xlabel(), axes.get_ylabel()) for plane, axes in panels(drawn[0]).items()}
    # As radiologists look at a patient: from the feet and from the front.
    assert borders == {
        "axial": ("R - L", "P - A"),
        "coronal": ("R - L", "I - S"),
        "sagittal": ("P - A", "I - S"),
    }


def test_pixels_of_the_file(drawn, tmp_path):
    """A label in the patient's right, front half: its colour is in that quarter of the axial panel only."""
    image, labels = volumes()
    draw_overview(
        tmp_path / "o.png", Volume(0 * image.array, image.affine), {"a": labels}, NAMES, window=(0, 1)
    )
    pixels = imread(tmp_path / "o.png")[..., :3]
    axes = panels(drawn[0])["axial"]
    # Fractions of the figure from below to rows of the file from above.
    frame = axes.get_position()
    height, width = pixels.shape[:2]
    inset = 3
    panel = pixels[
        int((1 - frame.y1) * height) + inset : int((1 - frame.y0) * height) - inset,
        int(frame.x0 * width) + inset : int(frame.x1 * width) - inset,
    ]
    coloured = np.ptp(panel, axis=-1) > 0.2
    rows, columns = np.nonzero(coloured)
    assert rows.size > 50
    share = (columns / panel.shape[1]).min(), (columns / panel.shape[1]).max()
    assert share == pytest.approx((1 - BOX[0].stop / 30, 1 - BOX[0].start / 30), abs=0.03)
    share = (rows / panel.shape[0]).min(), (rows / panel.shape[0]).max()
    assert share == pytest.approx((1 - BOX[1].stop / 26, 1 - BOX[1].start / 26), abs=0.03)


def test_two_columns_of_different_labels(drawn, tmp_path):
    image, first = volumes()
    moved = 2 * np.roll(first.array == 1, -6, axis=1).astype(np.int32)
    second = Volume(moved, first.affine)
    draw_overview(tmp_path / "o.png", image, {"prediction": first, "reference": second}, NAMES, window=(0, 9))
    figure = drawn[0]
    left, right = figure.axes[2:4]
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["prediction, axial 5", "reference, axial 5", "axial 10", "axial 10"]
    assert outline_box(right)[0] == pytest.approx(outline_box(left)[0] - 6)
    colours = [tuple(axes.collections[0].get_edgecolor()[0]) for axes in (left, right)]
    assert colours[0] != colours[1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["liver", "spleen"]
    assert [tuple(line.get_color()) for line in legend.get_lines()] == colours


def test_labels_without_names_and_images_without_labels(drawn, tmp_path):
    image, labels = volumes(value=7)
    draw_overview(tmp_path / "a.png", image, {"a": labels}, NAMES, window=(0, 9))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["spleen", "7"]
    empty = Volume(0 * labels.array, labels.affine)
    draw_overview(tmp_path / "b.png", image, {"a": empty}, NAMES, window=(0, 9))
    assert all(not axes.collections for axes in drawn[1].axes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_picture_is_cut_to_the_labels(drawn, tmp_path):
    image, labels = volumes()
    box = Volume((labels.array == 1).astype(np.int32), labels.affine)
    draw_overview(tmp_path / "o.png", image, {"a": box}, NAMES, window=(0, 100))
    axes = panels(drawn[0])["axial"]
    bright = np.argwhere(axes.images[0].get_array() == 100)
    (bottom, left), (top, right) = bright.min(axis=0), bright.max(axis=0)
    assert outline_box(axes) == pytest.approx((left - 0.5, right + 0.5, bottom - 0.5, top + 0.5))
    # Three tenths of the box, and a voxel, on every side; the grid ends after 30 and 26 voxels.
    assert axes.images[0].get_array().shape == (26 - (11 - 4), 30 - (13 - 4))
    assert (left, bottom) == (4, 4)


def test_one_slice(tmp_path):
    image, labels = volumes()
    thin = [Volume(volume.array[:, :, :, 14:15], volume.affine) for volume in (image, labels)]
    draw_overview(tmp_path / "o.png", thin[0], {"a": thin[1]}, NAMES, window=(0, 9))
    assert (tmp_path / "o.png").stat().st_size > 1000


@pytest.mark.parametrize("change", ["shape", "position"])
def test_another_grid_is_refused(tmp_path, change):
    image, labels = volumes()
    affine, array = labels.affine.copy(), labels.array
    if change == "shape":
        array = array[:, :-1]
    else:
        affine[1, 3] += 5
    with pytest.raises(GeometryError, match="image and labels"):
        draw_overview(tmp_path / "o.png", image, {"a": Volume(array, affine)}, NAMES, window=(0, 9))
    assert list(tmp_path.iterdir()) == []
