"""The cache gives back what was prepared, under a name that depends on content alone, and finds damage."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparseg.datasets.cache import build_cache, cache_size, case_key, class_ids, clear_cache, estimate_bytes
from sparseg.datasets.cache_arrays import block_edge, image_array, label_array, pick_locations
from sparseg.datasets.cache_entry import read_entry
from sparseg.datasets.dataset import Case, Dataset
from sparseg.datasets.facts import CaseFacts, content_key_of, measure
from sparseg.datasets.load import load_case
from sparseg.errors import DatasetError
from sparseg.preprocessing.config import CTIntensity, MRIntensity, PreprocessConfig
from sparseg.preprocessing.pipeline import prepare
from sparseg.shapes import Triple
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom
from sparseg.volumes.volume import Volume

PREPROCESS = PreprocessConfig(spacing=(1.0, 1.2, 2.0), intensity=MRIntensity(), foreground_crop=False)
CHUNK = (8, 8, 8)
LABELS = {0: "background", 2: "liver", 7: "tumour"}


def write_case(root: Path, name: str, *, seed: int, labelled: bool = True) -> Case:
    image, labels = make_phantom((14, 12, 10), spacing=(1.5, 1.0, 2.0), num_classes=3, seed=seed)
    path = root / f"{name}.nii.gz"
    write_image(path, image)
    if not labelled:
        return Case(name, (path,))
    ids = np.array([0, 2, 7], np.uint8)[labels.array[0]]
    write_label_map(root / f"{name}_seg.nii.gz", ids, labels.affine)
    return Case(name, (path,), root / f"{name}_seg.nii.gz")


def describe(root: Path, cases: list[Case], **changes: object) -> Dataset:
    dataset = Dataset("toy", ("MR",), LABELS, tuple(c for c in cases if c.labelled), (), root)
    return replace(dataset, **changes)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, list[CaseFacts]]:
    root = tmp_path_factory.mktemp("ZZPHI03")
    dataset = describe(root, [write_case(root, f"ZZPHI0{seed}", seed=seed) for seed in (1, 2)])
    return dataset, [measure(*load_case(case, dataset)) for case in dataset.training]


def build(toy: tuple[Dataset, list[CaseFacts]], folder: Path, chunk: Triple = CHUNK, **options):
    dataset, facts = toy
    return build_cache(
        dataset, facts, PREPROCESS, cases=dataset.training, folder=folder, chunk=chunk, workers=1, **options
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_gives_back_what_was_prepared(toy, tmp_path: Path) -> None:
    dataset, facts = toy
    for case, fact, cached in zip(dataset.training, facts, build(toy, tmp_path), strict=True):
        image, labels = load_case(case, dataset)
        prepared = prepare(image, PREPROCESS, labels=labels)
        expected = prepared.image.array.astype(np.float16)
        indices = np.searchsorted([0, 2, 7], prepared.labels.array).astype(np.uint8)
        assert (cached.name, cached.facts, cached.record.spacing) == (case.name, fact, (1.0, 1.2, 2.0))
        assert (cached.image.shape, cached.image.dtype, cached.image.ndim) == (expected.shape, np.float16, 4)
        assert (cached.label.shape, cached.label.dtype) == (indices.shape, np.uint8)
        np.testing.assert_array_equal(np.asarray(cached.image), expected)
        np.testing.assert_array_equal(cached.label[...], indices)
        rng = np.random.default_rng(0)
        for _ in range(30):
            ends = np.sort([rng.integers(0, edge + 1, 2) for edge in expected.shape[1:]], axis=1)
            box = (slice(None), *(slice(a, b) for a, b in ends.tolist()))
            np.testing.assert_array_equal(cached.image[box], expected[box])
            np.testing.assert_array_equal(cached.label[box], indices[box])
        assert sorted(cached.locations) == [1, 2]
        for label, found in cached.locations.items():
            np.testing.assert_array_equal(found, np.flatnonzero(indices[0] == label))
        assert cached.record.class_counts == dict(enumerate(np.bincount(indices.reshape(-1)).tolist()))


def test_a_pickled_case_reads_the_same(toy, tmp_path: Path) -> None:
    cached = build(toy, tmp_path)[1]
    values = cached.image[...]
    again = pickle.loads(pickle.dumps(cached))
    np.testing.assert_array_equal(again.image[...], values)
    assert again == cached
    assert len(pickle.dumps(cached)) < 20_000


def test_threads_read_side_by_side(toy, tmp_path: Path) -> None:
    image = build(toy, tmp_path)[0].image
    whole = image[...]

    def read(start: int) -> bool:
        box = (slice(None), slice(start, start + 6), slice(start, None))
        return all(np.array_equal(image[box], whole[box]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))


def test_nothing_in_the_cache_names_a_case_or_folder(toy, tmp_path: Path) -> None:
    build(toy, tmp_path)
    assert not [name for name, data in content(tmp_path).items() if "ZZPHI" in name or b"ZZPHI" in data]
    assert {Path(name).name for name in content(tmp_path)} == {
        "case.json",
        "image.b2nd",
        "label.b2nd",
        "locations.npy",
    }


def test_equal_input_gives_equal_bytes_and_a_second_build_writes_nothing(toy, tmp_path: Path) -> None:
    sizes: list[tuple[int, int, Path]] = []
    done: list[str] = []
    build(toy, tmp_path / "a", on_size=lambda *size: sizes.append(size), on_case=done.append)
    build(toy, tmp_path / "b")
    first = content(tmp_path / "a")
    assert first == content(tmp_path / "b")
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "a").rglob("*"))]
    build(toy, tmp_path / "a", chunk=(4, 4, 4), on_size=lambda *size: sizes.append(size), on_case=done.append)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "a").rglob("*"))] == stamps
    assert [(number, folder) for _, number, folder in sizes] == [(2, tmp_path / "a"), (0, tmp_path / "a")]
    assert sizes[0][0] == sum(estimate_bytes(fact, PREPROCESS) for fact in toy[1])
    assert sizes[1][0] == 0
    assert done == ["ZZPHI01", "ZZPHI02"] * 2


def test_one_case_under_two_names_is_built_once(toy, tmp_path: Path) -> None:
    dataset, facts = toy
    twin = replace(dataset.training[0], name="twin")
    done: list[str] = []
    cached = build_cache(
        dataset,
        [facts[0], facts[0]],
        PREPROCESS,
        cases=[dataset.training[0], twin],
        folder=tmp_path,
        chunk=CHUNK,
        on_case=done.append,
    )
    assert [case.name for case in cached] == done == ["ZZPHI01", "twin"]
    assert cache_size(tmp_path).num_cases == 1


def test_key_depends_on_content_preprocessing_and_ids_only(toy) -> None:
    facts = toy[1][0]
    key = case_key(facts, PREPROCESS, (0, 2, 7))
    same = PreprocessConfig(intensity=MRIntensity(), foreground_crop=False, spacing=(1, 1.2, 2))
    assert case_key(replace(facts, codes="LPS"), same, (0, 2, 7)) == key
    others = {
        case_key(toy[1][1], PREPROCESS, (0, 2, 7)),
        case_key(facts, PREPROCESS, (0, 2)),
        case_key(facts, PREPROCESS.model_copy(update={"margin_mm": 4.0}), (0, 2, 7)),
        case_key(replace(facts, label_hash=""), PREPROCESS, (0, 2, 7)),
    }
    assert len(others | {key}) == 5


def test_key_is_the_same_in_another_axis_order(toy) -> None:
    image, labels = load_case(toy[0].training[0], toy[0])
    turned = [
        Volume(v.array[:, ::-1].transpose(0, 2, 3, 1), flipped(v.affine, v.shape), "")
        for v in (image, labels)
    ]
    assert content_key_of(*turned) == content_key_of(image, labels) == toy[1][0].content_key


def flipped(affine: np.ndarray, shape: Triple) -> np.ndarray:
    result = affine.copy()
    result[:3, 3] += affine[:3, 0] * (shape[0] - 1)
    result[:3, 0] *= -1
    result[:3, :3] = result[:3, [1, 2, 0]]
    return result


def test_regions_keep_their_ids(toy, tmp_path: Path) -> None:
    dataset, facts = toy
    with_regions = replace(dataset, regions={"both": (2, 7), "tumour": (7,)})
    assert class_ids(dataset) == (0, 2, 7)
    assert class_ids(with_regions) == tuple(range(8))
    cached = build((with_regions, facts), tmp_path)[0]
    assert np.unique(cached.label[...]).tolist() == [0, 2, 7]
    assert sorted(cached.locations) == [2, 7]


def test_a_case_without_labels(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", seed=0, labelled=False)
    dataset = describe(tmp_path, [], test=(case,))
    facts = measure(*load_case(case, dataset))
    (cached,) = build_cache(
        dataset, [facts], PREPROCESS, cases=[case], folder=tmp_path / "cache", chunk=CHUNK
    )
    assert not cached.labelled
    assert cached.locations == {}
    assert cached.image[0, 3, 3, 3].dtype == np.float16
    with pytest.raises(DatasetError, match=r"must have labels.*received a;"):
        _ = cached.label


def test_values_beyond_float16_are_kept_in_float32() -> None:
    image = np.array([[[[0.5, 65504.0]]]], np.float32)
    assert image_array(image).dtype == np.float16
    wide = np.array([[[[0.5, -65505.0]]]], np.float32)
    assert image_array(wide).dtype == np.float32
    np.testing.assert_array_equal(image_array(wide), wide)


def test_label_types_follow_the_number_of_classes() -> None:
    for num_classes, kind in ((256, np.uint8), (257, np.int16), (32769, np.int32)):
        last = label_array(np.array([num_classes - 1, 0]), tuple(range(num_classes)))
        assert last.dtype == kind
        assert last.tolist() == [num_classes - 1, 0]
    np.testing.assert_array_equal(label_array(np.array([[900, 0, 3]]), (0, 3, 900)), [[2, 0, 1]])


def test_locations_are_spread_evenly_and_limited() -> None:
    labels = np.zeros((1, 10, 10, 10), np.uint8)
    labels[0, 2:8] = 1
    labels[0, 9, 9, 3:8] = 4
    picked = pick_locations(labels, 100)
    assert list(picked) == [1, 4]
    assert (len(picked[1]), len(picked[4])) == (100, 5)
    np.testing.assert_array_equal(np.diff(picked[1].astype(int)), 6)
    np.testing.assert_array_equal(picked[4], np.arange(993, 998))


def test_blocks_divide_chunks_into_equal_parts_near_32() -> None:
    edges = [1, 20, 32, 48, 64, 80, 96, 112, 128, 160]
    assert list(map(block_edge, edges)) == [1, 20, 32, 24, 32, 40, 32, 28, 32, 32]


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("intensity", [CTIntensity(), MRIntensity()])
def test_the_estimate_is_an_upper_bound(tmp_path: Path, crop: bool, intensity) -> None:
    rng = np.random.default_rng(4)
    array = np.full((1, 24, 23, 22), -1000.0 if isinstance(intensity, CTIntensity) else 0.0, np.float32)
    array[0, 5:19, 4:17, 6:18] = rng.normal(50, 40, (14, 13, 12))  # noise does not compress
    image = Volume(array, np.diag([1.4, 1.0, 2.2, 1]))
    labels = Volume(rng.integers(0, 2, (1, 24, 23, 22)).astype(np.int32), image.affine)
    write_image(tmp_path / "a.nii.gz", image)
    write_label_map(tmp_path / "a_seg.nii.gz", labels.array[0].astype(np.uint8) * 7, labels.affine)
    case = Case("a", (tmp_path / "a.nii.gz",), tmp_path / "a_seg.nii.gz")
    dataset = describe(tmp_path, [case])
    facts = measure(*load_case(case, dataset))
    settings = PreprocessConfig(
        spacing=(1.0, 1.0, 1.0), intensity=intensity, foreground_crop=crop, margin_mm=3
    )
    build_cache(dataset, [facts], settings, cases=[case], folder=tmp_path / "cache", chunk=(64, 64, 64))
    used, bound = cache_size(tmp_path / "cache").num_bytes, estimate_bytes(facts, settings)
    assert 0.2 * bound < used <= bound


@pytest.mark.parametrize("name", ["image.b2nd", "label.b2nd", "locations.npy", "case.json"])
@pytest.mark.parametrize("damage", ["shorter", "other", "gone"])
def test_damage_is_found_and_repaired(toy, tmp_path: Path, name: str, damage: str, caplog) -> None:
    cached = build(toy, tmp_path)
    sound = content(tmp_path)
    path = cached[0].folder / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "shorter":
        path.write_bytes(data[:-9])
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    with pytest.raises(DatasetError, match="cached case must be readable") as caught:
        read_entry(cached[0].folder, cached[0].record.key, verify=True)
    assert caught.value.code == "cache-corrupt"
    done: list[int] = []
    build(toy, tmp_path, on_size=lambda _, number, __: done.append(number))
    assert done == [1]
    assert content(tmp_path) == sound
    assert "damaged" in caplog.text


def test_a_file_damaged_while_in_use_is_named(toy, tmp_path: Path) -> None:
    cached = build(toy, tmp_path)[0]
    (cached.folder / "image.b2nd").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match=r"image\.b2nd: a cached case must be readable"):
        cached.image[:, :2]
    np.save(cached.folder / "locations.npy", np.zeros(3, np.uint32))
    with pytest.raises(DatasetError, match=r"locations\.npy: a cached case must be readable"):
        _ = cached.locations


def test_a_case_changed_since_it_was_measured_is_refused(toy, tmp_path: Path) -> None:
    dataset, facts = toy
    with pytest.raises(DatasetError, match="received ZZPHI01 with other voxels") as caught:
        build((dataset, facts[::-1]), tmp_path)
    assert caught.value.code == "case-changed"
    assert content(tmp_path) == {}


def test_a_disk_without_room_is_refused_before_anything_is_written(toy, tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    needed = sum(estimate_bytes(fact, PREPROCESS) for fact in toy[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, needed - 1))
    with pytest.raises(DatasetError, match="--cache DIR") as caught:
        build(toy, tmp_path / "cache")
    assert caught.value.code == "disk-space"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, needed))
    assert len(build(toy, tmp_path / "cache")) == 2


def test_a_disk_that_fails_leaves_nothing(toy, tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DatasetError, match="received No space left on device; free space") as caught:
            build(toy, tmp_path)
    assert caught.value.code == "cache-write"
    assert content(tmp_path) == {}
    assert len(build(toy, tmp_path)) == 2


def test_clearing_removes_entries_and_nothing_else(toy, tmp_path: Path) -> None:
    build(toy, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ("0" * 64)).mkdir()
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / "notes.txt").write_text("keep")
    total = sum(len(data) for name, data in content(tmp_path).items() if "notes" not in name)
    assert cache_size(tmp_path) == (2, total)
    assert clear_cache(tmp_path) == (2, total)
    assert cache_size(tmp_path) == (0, 0)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "ab",
        "ab/notes.txt",
        "mine",
        f"mine/{'0' * 64}",
    ]
    assert cache_size(tmp_path / "none") == clear_cache(tmp_path / "none") == (0, 0)
