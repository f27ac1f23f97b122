"""Labels decided slab by slab equal those decided on full-size logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from predict.grids import stored_as, turned
from predict.threshold_model import tiny_card, tiny_net
from sparseg.predict.decide import make_background_test, make_decision
from sparseg.predict.predictor import labels_on_original_grid
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.preprocessing.pipeline import plan
from sparseg.preprocessing.restore import background_fill, crop_box, model_positions, restore_logits
from sparseg.volumes.volume import Volume
from sparseg.windows.finish import finish_labels

GRIDS = {
    "aligned": ((0, 1, 2), (1, 1, 1), (0.0, 0.0, 0.0)),
    "flipped": ((0, 1, 2), (-1, 1, -1), (0.0, 0.0, 0.0)),
    "permuted": ((2, 0, 1), (1, -1, 1), (0.0, 0.0, 0.0)),
    "oblique": ((0, 1, 2), (1, 1, 1), (20.0, -8.0, 15.0)),
    "oblique, permuted and flipped": ((1, 2, 0), (-1, 1, 1), (-25.0, 5.0, 30.0)),
}
SPACINGS = {
    "finer": (1.1, 0.8, 1.7),
    "coarser": (2.3, 2.9, 4.1),
    "mixed": (0.7, 3.0, 2.5),  # the last axis keeps its voxels
}


def make_record(grid, spacing):
    """Plan an anisotropic volume with a foreground that does not fill it."""
    order, signs, degrees = GRIDS[grid]
    affine = np.diag([1.2, 0.9, 2.5, 1.0])
    affine[:3, 3] = (-30.0, 12.0, 4.0)
    array = np.full((1, 19, 15, 11), -1000.0, np.float32)
    array[0, 4:16, 3:13, 2:9] = 40.0
    volume = turned(stored_as(Volume(array, affine), order, signs), degrees)
    config = PreprocessConfig(spacing=SPACINGS[spacing], intensity=CTIntensity(), margin_mm=1.0)
    return plan(volume, config)


def random_logits(record, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_classes, *record.model_shape, generator=generator)


def assert_equal_but_for_ties(labels, full):
    """The top logits are interpolated twice in different order, so they may swap only where they tie."""
    differs = labels != full.argmax(axis=0)
    top = np.sort(full, axis=0)[-2:, differs]
    assert np.all(top[1] - top[0] <= 1e-5)
    assert differs.mean() < 1e-3


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_equals_argmax_of_restored_logits(grid, spacing):
    record = make_record(grid, spacing)
    logits = random_logits(record, 3)
    full = restore_logits(logits.numpy(), record, fill=background_fill(3))
    labels = labels_on_original_grid(logits, record, tiny_card(tiny_net()))
    assert labels.shape == record.original_shape
    assert_equal_but_for_ties(labels, full)
    assert set(np.unique(labels)) == {0, 1, 2}


@pytest.mark.parametrize("slab", [1, 3, 16, 100])
def test_slab_size_changes_nothing_and_bounds_the_memory(slab):
    record = make_record("oblique, permuted and flipped", "coarser")
    logits = random_logits(record, 4)
    positions = [model_positions(record, axis) for axis in range(3)]
    shapes = []

    def decide(values):
        shapes.append(tuple(values.shape))
        return values.argmax(dim=0)

    labels = finish_labels(logits, positions, decide, slab=slab)
    whole = finish_labels(logits, positions, lambda values: values.argmax(dim=0), slab=10**6)
    np.testing.assert_array_equal(labels, whole)
    h, w, d = record.crop_shape
    thickness = [min(slab, h - first) for first in range(0, h, slab)]
    assert shapes == [(4, n, w, d) for n in thickness]


def test_axes_that_were_not_resampled_keep_their_very_values():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 7, 6, 9, generator=generator)
    seen = []

    def decide(values):
        seen.append(values.clone())
        return values.argmax(dim=0)

    labels = finish_labels(logits, [np.arange(7), np.arange(6.0), np.arange(9)], decide, slab=4)
    torch.testing.assert_close(torch.cat(seen, dim=1), logits, rtol=0, atol=0)
    np.testing.assert_array_equal(labels, logits.argmax(dim=0).numpy())


def test_positions_outside_take_the_border_and_between_are_linear():
    ramp = torch.tensor([0.0, 10.0, 20.0]).reshape(1, 3, 1, 1)
    positions = [np.array([-2.0, 0.25, 1.0, 1.5, 2.0, 7.0]), np.zeros(1), np.zeros(1)]
    labels = finish_labels(ramp, positions, lambda values: (2 * values[0]).round())
    assert labels[:, 0, 0].tolist() == [0, 5, 20, 30, 40, 40]


def test_outside_the_crop_is_background_even_if_all_logits_say_otherwise():
    record = make_record("permuted", "finer")
    logits = torch.zeros(3, *record.model_shape)
    logits[2] = 5
    labels = labels_on_original_grid(logits, record, tiny_card(tiny_net()))
    assert np.count_nonzero(labels == 2) == np.prod(record.crop_shape)
    assert np.count_nonzero(labels) == np.prod(record.crop_shape)
    assert np.prod(record.crop_shape) < labels.size


def test_ids_above_255_survive():
    card = tiny_card(
        tiny_net(num_classes=1), labels={0: "background", 300: "lesion"}, regions={"lesion": (300,)}
    )
    record = make_record("aligned", "finer")
    labels = labels_on_original_grid(torch.ones(1, *record.model_shape), record, card)
    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) == {0, 300}


def test_regions_are_decided_on_the_original_grid_too():
    record = make_record("flipped", "coarser")
    logits = random_logits(record, 3)
    regions = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    names = {0: "background", 1: "oedema", 2: "necrosis", 3: "enhancing tumour"}
    card = tiny_card(tiny_net(), labels=names, regions=regions)
    labels = labels_on_original_grid(logits, record, card)
    full = torch.from_numpy(restore_logits(logits.numpy(), record, fill=background_fill(3, regions=True)))
    expected = make_decision(range(full.shape[0]), regions)(full).numpy()
    differs = labels != expected
    assert np.all(full.abs().amin(dim=0).numpy()[differs] <= 1e-5)
    assert differs.mean() < 1e-3
    assert crop_box(record) != tuple(slice(0, n) for n in record.reoriented_shape)


def test_who_watches_sees_every_slab_once_and_where_it_lies():
    logits = random_logits(make_record("aligned", "finer"), 2)
    positions = [np.arange(n, dtype=float) for n in logits.shape[1:]]
    seen = torch.full_like(logits, torch.nan)

    def note(first, values):
        assert bool(seen[:, first : first + values.shape[1]].isnan().all())
        seen[:, first : first + values.shape[1]] = values

    finish_labels(logits, positions, lambda values: values.argmax(dim=0), slab=5, on_slab=note)
    torch.testing.assert_close(seen, logits, rtol=0, atol=0)


def smooth_logits(seed, num_classes, size, *, lead):
    """Logits that change slowly over the grid, with class 0 `lead` ahead of the others on average."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, num_classes, *(max(2, n // 4) for n in size), generator=generator)
    logits = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear", align_corners=True)[0]
    logits[0] += lead
    return logits


@pytest.mark.parametrize("lead", [-9.0, 0.5, 1.5, 9.0])
@pytest.mark.parametrize(
    "regions", [{}, {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,), "rest": (4,)}]
)
@pytest.mark.parametrize("scale", [0.45, 1.0, 1.7])
def test_background_that_is_sure_need_not_be_decided(lead, regions, scale, monkeypatch):
    monkeypatch.setattr("sparseg.windows.finish._TILE", 5)
    size = (14, 17, 11)
    logits = smooth_logits(int(10 * lead), 4, size, lead=lead)
    if regions:
        logits[0] -= lead
        logits -= max(lead, -2.0)
    positions = [np.linspace(-0.7, n - 0.4, round(n / scale)) for n in size]
    decide, seen = make_decision(range(5), regions), []

    def counted(values):
        seen.append(values[0].numel())
        return decide(values)

    everything = finish_labels(logits, positions, decide, slab=4)
    out = np.zeros(everything.shape, np.uint16, order="F")
    labels = finish_labels(
        logits, positions, counted, background=make_background_test(range(5), regions), slab=4, out=out
    )
    assert labels is out
    np.testing.assert_array_equal(labels, everything)
    if lead == 9.0:
        assert sum(seen) == 0
        assert not everything.any()
    elif lead == 1.5:
        assert np.count_nonzero(everything) <= sum(seen) < everything.size
        assert everything.any()
