"""Synthetic subjects: maps that do not fold, labels that follow the image, tissues that keep their HU."""

import numpy as np
import pytest
from scipy import ndimage

from sparseg.config import parse_config
from sparseg.datasets.facts import measure
from sparseg.datasets.load import load_case
from sparseg.datasets.read import read_dataset
from sparseg.datasets.synth.config import SynthConfig
from sparseg.datasets.synth.deform import compose, integrate, min_jacobian, random_affine, random_velocity
from sparseg.datasets.synth.generate import phantom_original, write_synthetic
from sparseg.datasets.synth.subject import make_subject
from sparseg.datasets.synth.tissues import clusters_of, divide_by_intensity, separate
from sparseg.datasets.writers.write import LAYOUTS
from sparseg.errors import ConfigError, LabelError
from sparseg.volumes.geometry import voxel_to_world
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

# Everything off: the subject is its source.
STILL = {
    "rotation_degrees": 0.0,
    "scaling": 0.0,
    "shear": 0.0,
    "translation_mm": 0.0,
    "deform_mm": 0.0,
    "bias": 0.0,
    "gamma": 0.0,
    "noise": 0.0,
    "blur_mm": 0.0,
    "max_thickness_mm": 0.0,
    "hu_jitter": 0.0,
}


def config(**values):
    return parse_config(SynthConfig, values)


# What moves a small volume a little, so that its structures stay within.
GENTLE = {"translation_mm": 1.0, "deform_mm": 0.5, "rotation_degrees": 5.0, "scaling": 0.02}


def ct_like(shape=(24, 22, 20)):
    """Air outside a body of fat, two balls within; the rest is not labelled. Voxels of 1.5, 1 and 2 mm."""
    affine = np.diag([1.5, 1.0, 2.0, 1.0])
    affine[:3, 3] = (-20.0, -15.0, -10.0)
    place = np.indices(shape) / np.array(shape).reshape(3, 1, 1, 1) - 0.5
    body = ((place / 0.48) ** 2).sum(axis=0) < 1
    ids = np.zeros(shape, np.int32)
    for label_id, centre, radius in ((1, (-0.18, 0.02, 0.06), 0.22), (2, (0.22, -0.1, 0.0), 0.19)):
        distance = ((place - np.array(centre).reshape(3, 1, 1, 1)) ** 2).sum(axis=0)
        ids[distance < radius**2] = label_id
    noise = np.random.default_rng(0).normal(0, 10, shape)
    hu = np.select([ids == 1, ids == 2, body], [60.0, 150.0, -100.0], -1000.0) + noise
    return Volume(hu[None].astype(np.float32), affine), Volume(ids[None], affine)


class TestDeformation:
    @pytest.mark.parametrize("seed", range(5))
    def test_flow_never_folds(self, seed):
        rng = np.random.default_rng(seed)
        velocity, _ = random_velocity(rng, (90.0, 80.0, 100.0), deviation=8.0, control=40.0)
        displacement = integrate(velocity)
        # Strong enough to matter: it moves by more than a node, and stretches.
        assert np.abs(displacement).max() > 1
        assert 0 < min_jacobian(displacement) < 0.9

    @pytest.mark.parametrize("seed", range(3))
    def test_flow_of_the_negative_velocity_is_the_inverse(self, seed):
        rng = np.random.default_rng(seed)
        velocity, step = random_velocity(rng, (140.0, 130.0, 150.0), deviation=4.0, control=40.0)
        edges = step.reshape(3, 1, 1, 1)
        there, back = integrate(velocity), integrate(-velocity)
        # Near the border the way leads out of the field.
        inner = (slice(None), *(slice(8, -8),) * 3)
        assert np.abs(there * edges)[inner].max() > 2.5
        assert np.abs(compose(back, there) * edges)[inner].max() < 0.4

    def test_flow_of_a_constant_velocity_is_a_shift(self):
        velocity = np.full((3, 8, 8, 8), 0.75, np.float32)
        assert np.allclose(integrate(velocity), 0.75, atol=1e-6)

    def test_flow_of_a_linear_velocity_is_exponential(self):
        """v = -a (x - c) moves to c + exp(-a) (x - c)."""
        nodes = np.indices((21, 5, 5), dtype=np.float32)
        velocity = np.zeros((3, 21, 5, 5), np.float32)
        velocity[0] = -0.5 * (nodes[0] - 10)
        moved = nodes[0] + integrate(velocity)[0]
        assert np.allclose(moved, 10 + np.exp(-0.5) * (nodes[0] - 10), atol=0.02)

    def test_velocity_has_the_wanted_strength(self):
        rng = np.random.default_rng(1)
        velocity, step = random_velocity(rng, (400.0, 400.0, 400.0), deviation=5.0, control=40.0)
        # In mm, at the control points (every eighth node).
        at_controls = velocity[:, ::8, ::8, ::8] * step.reshape(3, 1, 1, 1)
        assert at_controls.std() == pytest.approx(5.0, rel=0.1)

    def test_min_jacobian_sees_a_fold(self):
        displacement = np.zeros((3, 8, 8, 8), np.float32)
        displacement[0] = -1.5 * np.indices((8, 8, 8))[0]
        assert min_jacobian(displacement) == pytest.approx(-0.5)

    def test_affine_stays_in_its_bounds(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            matrix = random_affine(rng, rotation_degrees=10, scaling=0.1, shear=0.02)
            assert 0.9**3 - 1e-9 <= np.linalg.det(matrix) <= 1.1**3 + 1e-9
        rotation = random_affine(rng, rotation_degrees=30, scaling=0, shear=0)
        assert np.allclose(rotation @ rotation.T, np.eye(3))

    def test_impossible_deformation_is_refused(self):
        image, labels = ct_like()
        with pytest.raises(ConfigError, match="fold"):
            make_subject(image, labels, config(deform_mm=60.0, deform_grid_mm=5.0), 0)


class TestTissues:
    def test_clusters_find_the_tissues_of_a_ct(self):
        rng = np.random.default_rng(0)
        values = np.concatenate(
            [rng.normal(m, 10, n) for m, n in ((-1000, 50000), (-100, 8000), (50, 5000), (400, 300))]
        )
        centres = clusters_of(values, 4)
        assert np.abs(centres - [-1000, -100, 50, 400]).max() < 25

    def test_near_centres_are_one_tissue(self):
        assert separate(np.array([0.0, 5.0, 12.0, 100.0]), 10.0).tolist() == [0.0, 12.0, 100.0]

    def test_structures_have_no_halo(self):
        image, labels = make_phantom((24, 22, 20), num_classes=4)
        rest = labels.array[0] == 0
        assert divide_by_intensity(image.array[0], rest, 6)[rest].max() == 0

    def test_body_and_air_are_told_apart(self):
        image, labels = ct_like()
        rest = labels.array[0] == 0
        tissues = divide_by_intensity(image.array[0], rest, 2)
        fat = image.array[0] > -500
        assert (tissues[rest] == fat[rest]).mean() > 0.97


class TestSubject:
    def test_without_changes_the_image_is_the_source(self):
        image, labels = ct_like()
        settings = config(modality="ct", intensity="image", **STILL)
        made, ids = make_subject(image, labels, settings, 0)
        assert np.array_equal(ids.array, labels.array)
        assert np.allclose(made.affine, image.affine)
        # What is left is the factor on density, one for all voxels.
        factor = (made.array + 1000.0).sum() / (image.array + 1000.0).sum()
        assert abs(factor - 1) < 0.08
        error = np.abs(made.array - ((image.array + 1000) * factor - 1000))
        assert error[image.array > -950].max() < 2.0

    def test_equal_arguments_give_equal_voxels(self):
        image, labels = ct_like()
        first, second, other = (
            make_subject(image, labels, config(seed=5), index)[0].array for index in (3, 3, 4)
        )
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)
        assert not np.array_equal(first, make_subject(image, labels, config(seed=6), 3)[0].array)

    def test_settings_of_one_step_leave_the_other_steps(self):
        image, labels = ct_like()
        _, first = make_subject(image, labels, config(noise=5.0, gamma=0.0), 0)
        _, second = make_subject(image, labels, config(noise=50.0, gamma=0.5), 0)
        assert np.array_equal(first.array, second.array)

    @pytest.mark.parametrize("intensity", ["classes", "image"])
    def test_ct_stays_ct(self, intensity):
        image, labels = ct_like()
        for index in range(3):
            settings = config(modality="ct", intensity=intensity, max_thickness_mm=0.0, blur_mm=0.0, **GENTLE)
            made, ids = make_subject(image, labels, settings, index)
            assert made.array.dtype == np.int16
            # Away from borders, where blur mixes tissues.
            inside = [ndimage.binary_erosion(ids.array[0] == i) for i in (1, 2)]
            means = [made.array[0][mask].mean() for mask in inside]
            assert means[0] == pytest.approx(60, abs=70)
            assert means[1] == pytest.approx(150, abs=70)
            air = np.sort(made.array.ravel())[: made.array.size // 10]
            assert air.mean() == pytest.approx(-1000, abs=30)

    def test_painted_tissues_have_distinct_values_where_the_labels_say(self):
        """The warped labels outline the painted structures: contrast is at the label border."""
        image, labels = ct_like()
        settings = config(class_mean=(0.0, 1000.0), class_std=(0.0, 0.0), noise=0.0, bias=0.0, gamma=0.0,
                          blur_mm=0.0, max_thickness_mm=0.0, **GENTLE)  # fmt: skip
        made, ids = make_subject(image, labels, settings, 1)
        for label_id in (1, 2):
            inside = made.array[0][ndimage.binary_erosion(ids.array[0] == label_id, iterations=2)]
            assert inside.size > 10
            assert np.ptp(inside) <= 12

    def test_labels_only(self):
        _, labels = ct_like()
        made, ids = make_subject(None, labels, config(channels=2), 0)
        assert made.array.shape == (2, 24, 22, 20)
        assert set(np.unique(ids.array)) == {0, 1, 2}
        # The unlabelled rest is not flat, and the contrasts differ.
        rest = ids.array[0] == 0
        assert made.array[0][rest].std() > 30
        assert abs(np.corrcoef(made.array[0].ravel(), made.array[1].ravel())[0, 1]) < 0.9

    def test_ids_with_gaps_are_kept(self):
        image, labels = ct_like()
        gaps = Volume(np.array([0, 7, 300], np.int32)[labels.array], labels.affine)
        assert set(np.unique(make_subject(image, gaps, config(), 0)[1].array)) == {0, 7, 300}

    def test_grid_keeps_centre_and_axes(self):
        image, labels = ct_like()
        turn = np.array([[0.0, -1, 0, 5], [0.8, 0, -0.6, 1], [0.6, 0, 0.8, 2], [0, 0, 0, 1]])
        image, labels = (Volume(v.array, turn @ v.affine) for v in (image, labels))
        settings = config(shape=[16, 12, 10], spacing=[2.0, 1.5, 3.0])
        made, ids = make_subject(image, labels, settings, 0)
        assert made.shape == ids.shape == (16, 12, 10)
        assert np.allclose(made.spacing, (2.0, 1.5, 3.0))
        centres = [voxel_to_world(v.affine, (np.array(v.shape) - 1) / 2) for v in (made, image)]
        assert np.allclose(centres[0], centres[1])
        cosines = [v.affine[:3, :3] / v.spacing for v in (made, image)]
        assert np.allclose(cosines[0], cosines[1])

    def test_coarser_grid_keeps_structures_in_place(self):
        image, labels = ct_like()
        settings = config(modality="ct", intensity="image", spacing=[2.0, 1.4, 3.0], **STILL)
        _, ids = make_subject(image, labels, settings, 0)
        for label_id in (1, 2):
            centroids = [
                voxel_to_world(v.affine, np.argwhere(v.array[0] == label_id).mean(axis=0))
                for v in (labels, ids)
            ]
            assert np.linalg.norm(centroids[0] - centroids[1]) < 0.5 * max(ids.spacing)

    def test_native_resolution_keeps_thick_slices_in_place(self):
        image, labels = ct_like()
        still = {**STILL, "max_thickness_mm": 12.0}
        settings = config(modality="ct", intensity="image", native_resolution=True, seed=2, **still)
        made, ids = make_subject(image, labels, settings, 1)
        assert made.shape == ids.shape
        assert made.shape[:2] == (24, 22)
        assert 4 <= made.shape[2] < 20
        assert made.spacing[2] * made.shape[2] == pytest.approx(40.0)
        assert np.allclose(made.spacing[:2], labels.spacing[:2])
        for label_id in (1, 2):
            centroids = [
                voxel_to_world(v.affine, np.argwhere(v.array[0] == label_id).mean(axis=0))
                for v in (labels, ids)
            ]
            assert np.linalg.norm(centroids[0] - centroids[1]) < 0.25 * made.spacing[2]
            assert (made.array[0][ids.array[0] == label_id]).mean() > -20

    def test_thick_slices_are_smoother_across(self):
        image, labels = ct_like()
        rough = Volume(np.random.default_rng(0).normal(0, 100, image.array.shape).astype("f4"), image.affine)
        settings = config(modality="ct", intensity="image", seed=2, **{**STILL, "max_thickness_mm": 12.0})
        made, _ = make_subject(rough, labels, settings, 1)
        steps = [np.diff(made.array[0].astype(float), axis=axis).std() for axis in range(3)]
        assert steps[2] < 0.5 * steps[0]

    def test_refusals(self):
        image, labels = ct_like()
        with pytest.raises(ConfigError, match="--image"):
            make_subject(None, labels, config(modality="ct"), 0)
        with pytest.raises(LabelError, match="background only"):
            make_subject(image, Volume(labels.array * 0, labels.affine), config(), 0)
        with pytest.raises(ConfigError, match="one channel"):
            make_subject(Volume(np.repeat(image.array, 2, 0), image.affine), labels, config(modality="ct"), 0)
        for wrong in ({"channels": 2, "modality": "ct"}, {"class_mean": [5, 1]}, {"spacing": [1, 0, 1]}):
            with pytest.raises(ConfigError):
                config(**wrong)


class TestDataset:
    def test_workers_do_not_change_a_voxel(self, tmp_path):
        original = phantom_original((16, 14, 12), 0)
        facts = []
        for workers in (1, 2):
            folder = write_synthetic(
                original, config(seed=1), tmp_path / str(workers), num_cases=3, workers=workers
            )
            dataset = read_dataset(folder)
            facts.append([measure(*load_case(case, dataset)) for case in dataset.cases])
        assert facts[0] == facts[1]
        assert len({fact.content_key for fact in facts[0]}) == 3

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_layout_can_be_made(self, layout, tmp_path):
        done = []
        folder = write_synthetic(
            phantom_original((12, 12, 10), 0),
            config(),
            tmp_path / "set",
            num_cases=2,
            layout=layout,
            on_case=done.append,
        )
        assert done == ["synthetic_0001", "synthetic_0002"]
        assert (folder / "synth.json").is_file()
        dataset = read_dataset(folder)
        assert dataset.name.startswith("synthetic")
        assert (len(dataset.training), dataset.channels) == (2, ("MR",))
        assert dataset.labels == {0: "background", 1: "label 1", 2: "label 2", 3: "label 3"}
        assert b"synthetic" in (folder / ("README" if layout == "bids" else "README.txt")).read_bytes()
