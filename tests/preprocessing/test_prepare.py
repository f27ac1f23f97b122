"""World coordinates survive prepare and restore, whatever the affine."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from sparseg.config import parse_config
from sparseg.errors import ConfigError, GeometryError, LabelError, VolumeError
from sparseg.preprocessing.config import CTIntensity, MRIntensity, PreprocessConfig
from sparseg.preprocessing.pipeline import prepare
from sparseg.preprocessing.record import PreprocessRecord
from sparseg.preprocessing.restore import background_fill, restore_label_map, restore_logits
from sparseg.volumes.volume import Volume

ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
# The clip maps [-1, 1] to itself, so model values can be read as image values.
PLAIN = CTIntensity(clip=(-1, 1))
OBLIQUE = np.array([[0.9, -0.3, 0.3], [0.33, 0.94, -0.05], [-0.27, 0.14, 0.95]])
OBLIQUE = np.linalg.qr(OBLIQUE)[0] * np.sign(np.diag(np.linalg.qr(OBLIQUE)[0]))


def affine_of(rotation, spacing, origin=(-20.0, 31.0, 7.5)):
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def stored_as(volume, order, signs):
    """Return the same anatomy with other array axes: axis order and directions as given."""
    array = volume.array.transpose(0, *(1 + a for a in order))
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[old, new] = sign
        matrix[old, 3] = 0 if sign > 0 else volume.shape[old] - 1
    array = np.flip(array, [1 + a for a in range(3) if signs[a] < 0])
    return Volume(np.ascontiguousarray(array), volume.affine @ matrix)


def world(volume):
    """World mm of every voxel centre, [3,H,W,D]."""
    index = np.indices(volume.shape).reshape(3, -1)
    return (volume.affine[:3, :3] @ index + volume.affine[:3, 3:]).reshape(3, *volume.shape)


def ramp(shape, affine):
    """An image of three channels whose values are its world coordinates / 1000 mm."""
    blank = Volume(np.zeros((3, *shape), np.float32), affine)
    return Volume((world(blank) / 1000).astype(np.float32), affine)


def inside(image, model):
    """Model voxels within the outer voxel centres of the image (beyond them values are clamped)."""
    points = world(model).reshape(3, -1) - image.affine[:3, 3:]
    index = np.linalg.inv(image.affine[:3, :3]) @ points
    top = np.array(image.shape)[:, None] - 1
    return ((index > -1e-6) & (index < top + 1e-6)).all(axis=0).reshape(model.shape)


GRIDS = {
    "aligned": (np.eye(3), (1.0, 1.0, 1.0)),
    "anisotropic": (np.eye(3), (0.7, 0.8, 5.0)),
    "oblique": (OBLIQUE, (1.2, 0.9, 2.5)),
    "flipped and permuted": (np.array([[0, 0, -1.0], [-1, 0, 0], [0, 1, 0]]), (0.9, 2.0, 1.3)),
    "oblique, permuted": (OBLIQUE[:, [2, 0, 1]] * [1, -1, 1], (3.0, 0.6, 1.0)),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.0), (3.0, 0.8, 1.1)])
def test_values_sit_at_their_world_coordinates(name, spacing):
    image = ramp((13, 11, 9), affine_of(*GRIDS[name]))
    model, _, record = prepare(
        image, PreprocessConfig(spacing=spacing, intensity=PLAIN, foreground_crop=False)
    )
    np.testing.assert_allclose(model.spacing, spacing, rtol=1e-3)
    assert (np.diag(model.affine)[:3] > 0).all()
    valid = inside(image, model)
    assert valid.mean() > 0.3
    # Ramps are reproduced exactly, so only float32 rounding of coordinates below 100 mm is left: 0.001 mm.
    np.testing.assert_allclose(model.array[:, valid] * 1000, world(model)[:, valid], atol=1e-3)

    back = Volume(restore_logits(model.array, record, fill=0), image.affine)
    assert back.shape == image.shape
    # Linear between two model voxels of a ramp is exact too, away from the clamped rim of the model grid.
    reach = max(1.0, *(s / i for s in spacing for i in image.spacing))
    margin = [min(int(np.ceil(reach)), n // 2) for n in image.shape]
    core = tuple(slice(m, n - m) for m, n in zip(margin, image.shape, strict=True))
    np.testing.assert_allclose(back.array[(..., *core)] * 1000, world(image)[(..., *core)], atol=2e-3)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE], ids=["aligned", "oblique"])
def test_no_resampling_means_the_same_numbers(order, signs, rotation):
    rng = np.random.default_rng(3)
    values = rng.integers(-64, 65, (2, 5, 4, 3)) / np.float32(64)  # exact under the intensity mapping
    base = Volume(values, affine_of(rotation, (1.0, 2.0, 3.0)))
    stored = stored_as(base, order, signs)
    config = PreprocessConfig(spacing=(1.0, 2.0005, 3.0), intensity=PLAIN, foreground_crop=False)
    model, _, record = prepare(stored, config)
    np.testing.assert_array_equal(model.array, base.array)
    np.testing.assert_allclose(model.affine, base.affine, atol=1e-9)
    assert [scale for scale, _ in record.axis_maps] == [1, 1, 1]
    np.testing.assert_array_equal(restore_logits(base.array, record, fill=0), stored.array)
    labels = rng.integers(0, 9, base.shape)
    expected = stored_as(Volume(labels[None], base.affine), order, signs).array[0]
    np.testing.assert_array_equal(restore_label_map(labels, record), expected)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
def test_model_input_does_not_depend_on_how_axes_were_stored(order, signs):
    """Row N19 in small: crop, resampling and intensity commute with axis order and direction."""
    array = np.random.default_rng(4).normal(size=(1, 9, 8, 7)).astype(np.float32)
    base = Volume(array, affine_of(OBLIQUE, (1.0, 2.0, 3.0)))
    config = PreprocessConfig(spacing=(1.4, 1.4, 1.4), intensity=MRIntensity())
    expected, _, _ = prepare(base, config)
    model, _, _ = prepare(stored_as(base, order, signs), config)
    np.testing.assert_allclose(model.array, expected.array, atol=1e-5)
    np.testing.assert_allclose(model.affine, expected.affine, atol=1e-9)


def test_a_flipped_axis_is_noticed():
    image = ramp((9, 9, 9), affine_of(np.eye(3), (1.0, 1.0, 1.0)))
    mirrored = affine_of(np.diag([-1.0, 1, 1]), (1.0, 1.0, 1.0))
    model, _, _ = prepare(
        Volume(image.array, mirrored), PreprocessConfig(intensity=PLAIN, foreground_crop=False)
    )
    assert np.abs(model.array * 1000 - world(model)).max() > 8


def test_crop_is_recorded_and_undone():
    array = np.full((1, 20, 18, 16), -1000, np.float32)
    array[0, 4:10, 6:9, 5:14] = 40
    image = Volume(array, affine_of(np.diag([-1.0, 1, 1]), (1.0, 1.0, 2.0)))
    model, _, record = prepare(image, PreprocessConfig(intensity=CTIntensity(), margin_mm=2))
    assert record.crop_start == (20 - 10 - 2, 6 - 2, 5 - 1)
    assert record.crop_stop == (20 - 4 + 2, 9 + 2, 14 + 1)
    assert model.shape == record.crop_shape
    assert model.array.min() == -1
    assert model.array.max() == pytest.approx((40 + 958) / (326 + 958) * 2 - 1, abs=1e-6)
    labels = restore_label_map((model.array[0] > 0).astype(np.uint8), record)
    np.testing.assert_array_equal(labels, array[0] > -500)
    fill = background_fill(3)
    logits = restore_logits(torch.ones(3, *model.shape), record, fill=fill)
    np.testing.assert_array_equal(logits[:, 0, 0, 0], fill)
    assert (logits[:, 5, 7, 7] == 1).all()


@pytest.mark.parametrize("name", GRIDS)
def test_label_map_takes_the_nearest_model_voxel_in_mm(name):
    image = Volume(np.ones((1, 9, 7, 8), np.float32), affine_of(*GRIDS[name]))
    config = PreprocessConfig(spacing=(1.37, 0.93, 2.21), intensity=PLAIN, foreground_crop=False)
    model, _, record = prepare(image, config)
    ids = np.arange(np.prod(model.shape)).reshape(model.shape)
    offset = world(image).reshape(3, -1) - model.affine[:3, 3:]
    index = np.linalg.solve(model.affine[:3, :3], offset)
    taken = np.array(np.unravel_index(restore_label_map(ids, record).ravel(), model.shape))
    clamped = np.clip(index, 0, np.array(model.shape)[:, None] - 1)
    # Shared centres make exact ties possible; either neighbour is nearest then.
    assert np.abs(taken - clamped).max() <= 0.5 + 1e-6


def test_axis_maps_agree_with_the_affines():
    image = Volume(np.zeros((1, 9, 14, 6), np.float32), affine_of(OBLIQUE[:, [1, 2, 0]], (0.8, 1.1, 4.0)))
    image.array[0, 2:6, 3:11, 1:5] = 1
    _, _, record = prepare(
        image, PreprocessConfig(spacing=(1.5, 1.5, 2), intensity=MRIntensity(), margin_mm=0)
    )
    original = np.array([3, 7, 2])
    reoriented = [
        (record.original_shape[a] - 1 - original[a]) if flip else original[a]
        for a, flip in zip(record.permutation, record.flips, strict=True)
    ]
    mapped = [scale * i + offset for (scale, offset), i in zip(record.axis_maps, reoriented, strict=True)]
    expected = np.linalg.solve(record.model_affine, image.affine @ [*original, 1])[:3]
    np.testing.assert_allclose(mapped, expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 5, 1), (2, 1, 3)])
def test_tiny_volumes_come_back_in_shape(shape):
    image = Volume(np.full((1, *shape), 0.5, np.float32), affine_of(np.eye(3), (1.0, 1.0, 5.0)))
    model, labels, record = prepare(
        image,
        PreprocessConfig(spacing=(1.5, 1.5, 2.0), intensity=PLAIN),
        labels=Volume(np.full((1, *shape), 3, np.int32), image.affine),
    )
    np.testing.assert_allclose(model.array, 0.5, atol=1e-6)
    assert (labels.array == 3).all()
    np.testing.assert_allclose(restore_logits(model.array, record, fill=0), image.array, atol=1e-6)


def test_mr_channels_are_standardised_over_their_own_non_zero_voxels():
    rng = np.random.default_rng(5)
    array = rng.normal([[300], [5]], [[20], [2]], (2, 8 * 8 * 8)).reshape(2, 8, 8, 8).astype(np.float32)
    array[:, :3] = 0
    model, _, _ = prepare(
        Volume(array, np.eye(4)), PreprocessConfig(intensity=MRIntensity(), foreground_crop=False)
    )
    assert (model.array[:, :3] == 0).all()
    np.testing.assert_allclose(model.array[:, 3:].mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(model.array[:, 3:].std(axis=(1, 2, 3)), 1, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1])
def test_constant_image_gives_finite_values(value):
    image = Volume(np.full((1, 6, 6, 6), value, np.float32), np.eye(4))
    for intensity in (MRIntensity(), CTIntensity()):
        model, _, _ = prepare(image, PreprocessConfig(spacing=(2, 2, 2), intensity=intensity))
        assert np.isfinite(model.array).all()
        assert np.ptp(model.array) < 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e40])
def test_non_finite_image_is_refused(bad):
    array = np.zeros((1, 4, 4, 4))
    array[0, 1, 2, 3] = bad
    with pytest.raises(VolumeError, match="1 of 64 voxels"):
        prepare(Volume(array, np.eye(4)), PreprocessConfig(intensity=MRIntensity()))


def test_float_labels_and_absurd_spacing_are_refused():
    image = Volume(np.ones((1, 4, 4, 4)), np.eye(4))
    with pytest.raises(LabelError, match="integer"):
        prepare(
            image, PreprocessConfig(intensity=MRIntensity()), labels=Volume(np.ones((1, 4, 4, 4)), np.eye(4))
        )
    with pytest.raises(GeometryError, match="larger spacing"):
        prepare(image, PreprocessConfig(intensity=MRIntensity(), spacing=(1e-4, 1e-4, 1e-4)))


def test_record_survives_json():
    image = Volume(np.ones((1, 4, 5, 6)), affine_of(OBLIQUE, (0.7, 1 / 3, 2)))
    _, _, record = prepare(image, PreprocessConfig(intensity=MRIntensity(), spacing=(1, 1, 1)))
    copy = PreprocessRecord.from_json(record.to_json())
    assert copy.to_json() == record.to_json()
    assert copy.axis_maps == record.axis_maps
    np.testing.assert_array_equal(copy.original_affine, image.affine)
    with pytest.raises(VolumeError, match="exactly"):
        PreprocessRecord.from_json('{"flips": []}')


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"intensity": {"kind": "ct", "clip": [5, 5]}}, "intensity.ct.clip"),
        ({"intensity": {"kind": "pet"}}, "intensity"),
        ({"intensity": {"kind": "mr"}, "spacing": [1, 0, 1]}, "spacing.1"),
        ({"intensity": {"kind": "mr"}, "orientation": "LPS"}, "orientation"),
        ({"intensity": {"kind": "mr"}, "margin": 3}, "margin"),
    ],
)
def test_bad_settings_name_the_field(values, field):
    with pytest.raises(ConfigError) as error:
        parse_config(PreprocessConfig, values)
    assert error.value.where == field
