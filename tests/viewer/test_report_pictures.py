"""The pictures show every structure on the side of the patient that it lies on, whatever way it is stored."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.image import imread

from predict.grids import AXIS_ORDERS
from sparseg.viewer.report_pictures import (
    LOW_COLOUR,
    UNKNOWN_COLOUR,
    Plane,
    draw_case,
    picture_centre,
    stage_colours,
)
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.volume import Volume
from viewer.report_folder import COLOURS, LIVER, SHAPE, SPACING, SPLEEN, as_stored, phantom

AXES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
CUT = {"axial": 2, "coronal": 1, "sagittal": 0}


def pixels(plane: Plane) -> np.ndarray:
    """Return red, green, blue 0 to 255 of a picture."""
    return np.round(imread(io.BytesIO(plane.png))[..., :3] * 255)


def shares(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return where a mask begins and ends, from left and from the top, as shares of the picture."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    return columns.min() / width, (columns.max() + 1) / width, rows.min() / height, (rows.max() + 1) / height


def expected_shares(box: tuple[slice, ...], plane: str) -> tuple[float, float, float, float]:
    """Return the same of a box of the phantom: the patient's right on the left, front and head on top."""
    across, up = AXES[plane]
    left, right = box[across].start / SHAPE[across], box[across].stop / SHAPE[across]
    if across == 0:
        left, right = 1 - right, 1 - left
    return left, right, 1 - box[up].stop / SHAPE[up], 1 - box[up].start / SHAPE[up]


def is_like(picture: np.ndarray, colour: tuple[int, int, int], tolerance: float = 2) -> np.ndarray:
    return (np.abs(picture - np.array(colour)) <= tolerance).all(axis=-1)


@pytest.mark.parametrize(("order", "signs"), AXIS_ORDERS[::9])
def test_a_structure_is_on_its_side(order, signs):
    drawn, _ = draw_case(as_stored(order, signs), COLOURS, 3)
    assert [(plane.name, plane.borders) for plane in drawn["labels"]] == [
        ("axial", "RLPA"),
        ("coronal", "RLIS"),
        ("sagittal", "PAIS"),
    ]
    for kind in ("labels", "confidence"):
        for plane in drawn[kind]:
            picture = pixels(plane)
            found = picture[..., 0] - picture[..., 1] > 20
            assert shares(found) == pytest.approx(expected_shares(LIVER, plane.name), abs=0.02), plane.name
            # Every millimetre is equally long in both directions.
            across, up = (SHAPE[axis] * SPACING[axis] for axis in AXES[plane.name])
            assert (plane.width_mm, plane.height_mm) == pytest.approx((across, up))
            assert picture.shape[1] / picture.shape[0] == pytest.approx(across / up, rel=0.03)


def test_the_border_of_a_structure_has_its_full_colour_and_the_inside_a_third():
    picture = pixels(draw_case(phantom(), COLOURS, 3)[0]["labels"][0])
    full = is_like(picture, COLOURS[1])
    assert shares(full) == pytest.approx(expected_shares(LIVER, "axial"), abs=0.02)
    left, right, top, bottom = shares(full)
    height, width = full.shape
    inside = picture[round((top + bottom) / 2 * height), round((0.8 * left + 0.2 * right) * width)]
    # The image is 90 there.
    np.testing.assert_allclose(inside, [90 + 0.35 * (255 - 90), 0.65 * 90, 0.65 * 90], atol=1)


def test_planes_go_through_the_middle_of_the_largest_structure():
    volumes = phantom()
    centre = picture_centre(volumes["image"], volumes["labels"])
    low, high = (
        voxel_to_world(volumes["labels"].affine, [edge(part) for part in LIVER])
        for edge in (lambda part: part.start - 0.5, lambda part: part.stop - 0.5)
    )
    assert (np.abs(centre - (low + high) / 2) <= np.array(SPACING) / 2 + 1e-6).all()
    volumes["labels"].array[volumes["labels"].array == 1] = 0
    place = np.linalg.inv(volumes["labels"].affine) @ [
        *picture_centre(volumes["image"], volumes["labels"]),
        1,
    ]
    assert all(part.start <= value < part.stop for part, value in zip(SPLEEN, place[:3], strict=True))


def test_without_labels_the_planes_go_through_the_middle_of_the_image():
    image = phantom()["image"]
    expected = voxel_to_world(image.affine, [(size - 1) / 2 for size in SHAPE])
    np.testing.assert_allclose(picture_centre(image, None), expected)
    empty = Volume(np.zeros((1, *SHAPE), np.uint8), image.affine)
    np.testing.assert_allclose(picture_centre(image, empty), expected)


def test_a_label_without_colour_is_shown():
    picture = pixels(draw_case(phantom(), {}, 3)[0]["labels"][0])
    assert shares(is_like(picture, UNKNOWN_COLOUR)) == pytest.approx(
        expected_shares(LIVER, "axial"), abs=0.02
    )


def test_tokens_lie_on_their_patches():
    """In the axial plane through the liver: left half stage 1, right half stage 2, its front half kept."""
    picture = pixels(draw_case(phantom(), COLOURS, 3)[0]["tokens"][0])
    colours = stage_colours(3)
    height, width = picture.shape[:2]

    def seen(column: float, row: float) -> int:
        here = picture[int(row * height), int(column * width)]
        # The phantom is 90 there, and half of the picture is the colour.
        return next(value for value, colour in colours.items() if is_like(here, half(colour), 3))

    def half(colour: tuple[int, int, int]) -> tuple[int, int, int]:
        red, green, blue = ((90 + part) // 2 for part in colour)
        return (red, green, blue)

    # Patches are 4 voxels: the right half begins at voxel 12 of 24, the front part at voxel 16 of 28.
    assert [seen(0.7, 0.2), seen(0.7, 0.8), seen(0.25, 0.8), seen(0.25, 0.2)] == [1, 1, 2, 4]


def test_what_was_not_run_is_dim():
    """The lowest layer of patches is voxels 0 to 3 of 20."""
    coronal = pixels(draw_case(phantom(), COLOURS, 3)[0]["tokens"][1])
    plain = pixels(draw_case(phantom(), COLOURS, 3)[0]["confidence"][1])
    height, width = plain.shape[:2]
    below, above = int(0.85 * height), int(0.75 * height)
    assert coronal[below, width // 4] == pytest.approx(0.35 * plain[below, width // 4], abs=1)
    assert np.ptp(coronal[above, width // 4]) > 20


def test_only_low_confidence_is_coloured_the_lower_the_stronger():
    volumes = phantom()
    chance = volumes["confidence"].array
    chance[(0, *LIVER)] = 152
    weak = pixels(draw_case(volumes, COLOURS, 3)[0]["confidence"][0])
    chance[(0, *LIVER)] = 20
    strong = pixels(draw_case(volumes, COLOURS, 3)[0]["confidence"][0])
    chance[(0, *LIVER)] = 154
    none = pixels(draw_case(volumes, COLOURS, 3)[0]["confidence"][0])
    assert np.ptp(none, axis=-1).max() == 0

    def distance(picture: np.ndarray) -> float:
        return float(np.abs(picture - np.array(LOW_COLOUR)).sum(axis=-1).min())

    assert distance(strong) < distance(weak) < distance(none)


@pytest.mark.parametrize("num_stages", [0, 1, 3, 6])
def test_stages_have_colours_that_brighten(num_stages):
    colours = stage_colours(num_stages)
    assert list(colours) == list(range(1, num_stages + 2))
    brightness = [0.3 * red + 0.6 * green + 0.1 * blue for red, green, blue in colours.values()]
    assert all(second > first + 10 for first, second in pairwise(brightness))
    assert colours[num_stages + 1] == (253, 231, 37)
