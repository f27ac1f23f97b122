"""Which class, case and place a labelled centre is chosen from."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparseg.datasets.cache_arrays import CachedArray, pick_locations, write_array
from sparseg.training.augment import make_augmentation
from sparseg.training.class_table import make_class_table
from sparseg.training.config import AugmentConfig
from sparseg.training.sampling import CropDataset, choose_centre, to_surface
from sparseg.training.sampling_config import SamplingConfig

ROI = (4, 4, 4)


@dataclass
class OpenedCase:
    """A case in memory that counts how often its locations are asked for."""

    label: Any
    opened: int = 0
    record: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        ids, counts = np.unique(self.label, return_counts=True)
        self.record = SimpleNamespace(class_counts=dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        self.image = self.label.astype(np.float32)

    @property
    def locations(self) -> dict[int, np.ndarray]:
        self.opened += 1
        return pick_locations(self.label, 20_000)


def case(**sizes: int) -> OpenedCase:
    """A 12 x 11 x 10 volume with `class_N=count` voxels of each class, in scattered places."""
    label = np.zeros(12 * 11 * 10, np.uint8)
    places = np.random.default_rng(0).permutation(label.size)
    start = 0
    for name, count in sizes.items():
        label[places[start : start + count]] = int(name[-1])
        start += count
    return OpenedCase(label.reshape(1, 12, 11, 10))


def cases() -> list[OpenedCase]:
    """Nine cases with a large and a small class, one that has a rare class too, one without any."""
    return [case(c1=400, c2=25) for _ in range(8)] + [case(c1=400, c2=25, c3=100), case()]


def crops(made: list[OpenedCase], *, share: float = 1.0, **settings: Any) -> CropDataset:
    chain = make_augmentation(AugmentConfig(), ROI)
    sampling = SamplingConfig.model_validate(settings)
    return CropDataset(made, ROI, chain, positive_share=share, pad_value=0.0, seed=0, sampling=sampling)


def chosen(made: list[OpenedCase], number: int = 4000, share: float = 1.0, **settings: Any) -> Counter[int]:
    """How often a crop of one voxel has each class at its centre."""
    dataset = crops(made, share=share, **settings)
    dataset.roi = (1, 1, 1)
    found: Counter[int] = Counter()
    for n in range(number):
        picked, centre = dataset.place(np.random.default_rng((1, n)))
        found[int(picked.label[(0, *centre)])] += 1
    return found


def expect(found: Counter[int], shares: dict[int, float]) -> None:
    total = sum(found.values())
    for value in set(found) | set(shares):
        sigma = (max(shares.get(value, 0.0), 1e-9) / total) ** 0.5
        assert abs(found[value] / total - shares.get(value, 0.0)) < 4 * sigma + 1e-3, (value, found)


def test_by_default_the_draws_are_case_then_sign_then_class_then_voxel() -> None:
    made = cases()
    dataset = crops(made, share=0.5)
    for number in range(40):
        rng, same = np.random.default_rng((3, number)), np.random.default_rng((3, number))
        picked, centre = dataset.place(rng)
        expected = made[int(same.integers(len(made)))]
        assert picked is expected
        locations = expected.locations
        if locations and same.random() < 0.5:
            flat = int(same.choice(locations[int(same.choice(list(locations)))]))
            voxel = np.unravel_index(flat, (12, 11, 10))
        else:
            voxel = tuple(same.integers(edge) for edge in (12, 11, 10))
        clipped = tuple(int(np.clip(v, 2, e - 2)) for v, e in zip(voxel, (12, 11, 10), strict=True))
        assert centre == clipped
        assert rng.random() == same.random()


def test_class_first_sees_a_rare_class_as_often_as_the_others() -> None:
    expect(chosen(cases(), class_first=True), {1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    rare = chosen(cases())[3] / 4000
    assert rare < 0.06  # a tenth of the cases, a third of their crops


def test_class_first_keeps_the_share_of_labelled_centres() -> None:
    found = chosen(cases(), share=0.25, class_first=True)
    anywhere = (9 * 425 + 100) / (10 * 1320)
    assert 1 - found[0] / 4000 == pytest.approx(0.25 + 0.75 * anywhere, abs=0.03)


def test_small_structures_first_goes_with_one_over_the_root_of_the_size() -> None:
    weights = {1: 1 / 20, 2: 1 / 5, 3: 1 / 10}  # 400, 25 and 100 voxels
    total = sum(weights.values())
    shares = {value: weight / total for value, weight in weights.items()}
    expect(chosen(cases(), class_first=True, classes="small_first"), shares)
    expect(chosen(cases()[:8], classes="small_first"), {1: 0.2, 2: 0.8})


def test_frequency_goes_with_the_voxels() -> None:
    total = 9 * 425 + 100
    shares = {1: 9 * 400 / total, 2: 9 * 25 / total, 3: 100 / total}
    expect(chosen(cases(), class_first=True, classes="frequency"), shares)
    expect(chosen(cases()[:8], classes="frequency"), {1: 400 / 425, 2: 25 / 425})


@pytest.mark.parametrize("classes", ["equal", "frequency", "small_first"])
@pytest.mark.parametrize("class_first", [False, True])
def test_without_any_label_crops_lie_anywhere(classes: str, class_first: bool) -> None:
    dataset = crops([case(), case()], classes=classes, class_first=class_first)
    centres = {dataset.place(np.random.default_rng(n))[1] for n in range(200)}
    assert len(centres) > 80


def test_choosing_opens_only_the_case_that_is_cut() -> None:
    made = cases()
    dataset = crops(made, class_first=True, classes="small_first", boundary_share=0.5)
    assert [one.opened for one in made] == [0] * 10
    picked, _ = dataset.place(np.random.default_rng(0))
    assert [one.opened > 0 for one in made] == [one is picked for one in made]


def test_a_crop_depends_only_on_seed_and_number_also_after_pickling() -> None:
    dataset = crops(cases(), class_first=True, classes="small_first", boundary_share=0.5)
    again = pickle.loads(pickle.dumps(dataset))
    for number in (5, 0, 3):
        for one, other in zip(dataset[number], again[number], strict=True):
            assert np.array_equal(one.numpy(), other.numpy())


def test_table_of_sizes_from_each_source() -> None:
    plain = SimpleNamespace(class_counts={0: 5, 2: 7, 3: 0})
    stored = case(c1=30, c2=9)
    positions = SimpleNamespace(locations={1: np.arange(4)})
    table = make_class_table([plain, stored, positions])
    assert [dict(one) for one in table.counts] == [{2: 7}, {1: 30, 2: 9}, {1: 4}]
    assert dict(table.median_sizes) == {1: 17.0, 2: 8.0}
    assert table.totals() == {1: 34, 2: 16}
    assert table.cases_with(1) == [1, 2]
    assert stored.opened == 0


def ball(shape: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    grid = np.indices(shape) - 10
    label = ((grid**2).sum(axis=0) <= 36).astype(np.uint8)
    label[8:11, 8:11, 8:11] = 2
    return label[None]


def on_surface(label: np.ndarray, centre: tuple[int, int, int]) -> bool:
    i, j, k = centre
    around = label[0, i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2]
    return bool((around != label[0, i, j, k]).any())


def test_boundary_share_moves_centres_to_the_surface_of_their_class() -> None:
    made = OpenedCase(ball())
    rng = np.random.default_rng(0)
    plain = [choose_centre(made, (1, 1, 1), 1.0, rng, shares={1: 1.0}) for _ in range(200)]
    moved = [
        choose_centre(made, (1, 1, 1), 1.0, rng, shares={1: 1.0}, boundary_share=1.0) for _ in range(200)
    ]
    assert all(made.label[(0, *centre)] == 1 for centre in [*plain, *moved])
    assert all(on_surface(made.label, centre) for centre in moved)
    assert sum(on_surface(made.label, centre) for centre in plain) < 170
    half = [choose_centre(made, (1, 1, 1), 1.0, rng, shares={1: 1.0}, boundary_share=0.5) for _ in range(200)]
    assert sum(on_surface(made.label, c) for c in plain) < sum(on_surface(made.label, c) for c in half) < 200


def test_a_class_that_reaches_the_edge_of_the_volume_ends_there() -> None:
    label = np.ones((1, 5, 6, 7), np.uint8)
    ends = {
        tuple(to_surface(label, np.array([2, 3, 4]), np.random.default_rng(n)).tolist()) for n in range(60)
    }
    assert ends == {(0, 3, 4), (4, 3, 4), (2, 0, 4), (2, 5, 4), (2, 3, 0), (2, 3, 6)}


def test_the_surface_is_found_in_the_cache_too(tmp_path: Any) -> None:
    label = ball()
    write_array(tmp_path / "label.b2nd", label, (8, 8, 8))
    stored = CachedArray(tmp_path / "label.b2nd", label.shape, label.dtype)
    for seed in range(12):
        start = np.array([7, 10, 12])
        one = to_surface(label, start, np.random.default_rng(seed))
        assert np.array_equal(one, to_surface(stored, start, np.random.default_rng(seed)))
