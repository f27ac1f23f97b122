"""From file to file: the synthetic CT, the four ways to predict it, and the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparseg.benchmark.files import bench_files, mean_dice
from sparseg.benchmark.files_case import (
    AIR,
    LABELS,
    NOISE_HU,
    ORGANS,
    SHEET,
    SIZES,
    make_ct,
    model_spacing,
)
from sparseg.benchmark.files_model import model_card
from sparseg.benchmark.files_report import markdown, ratio_to_this, table_rows
from sparseg.benchmark.files_run import BASE, PARTS, WAYS, Task, Way
from sparseg.checkpoints.folder import save_model
from sparseg.errors import ConfigError
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.volumes.io import read_labels
from sparseg.volumes.nifti_writer import write_image

TINY = ((31, 31, 32), (410 / 31, 410 / 31, 12.5))


def above_fat(net: SparseUNETR, image: Tensor) -> Tensor:
    """Stand in for `SparseUNETR.forward`: class 5 above the intensity of fat, else background."""
    ramp = torch.zeros(1, net.config.num_classes, 1, 1, 1)
    ramp[:, 5] = 20.0
    return ramp * (image + 0.4)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Return a tiny CT and a network that looks at intensities only."""
    monkeypatch.setattr(SparseUNETR, "forward", above_fat)
    torch.manual_seed(0)
    net = build_segmenter("test_tiny", num_classes=len(LABELS))
    card = model_card(net)
    preprocess = card.preprocess.model_copy(update={"spacing": model_spacing(*TINY)})
    save_model(tmp_path / "model", net, card.model_copy(update={"preprocess": preprocess}))
    write_image(tmp_path / "ct.nii.gz", make_ct(*TINY)[0])
    return Task(tmp_path / "ct.nii.gz", tmp_path / "model", 0.5)


def test_the_ct_has_the_proportions_it_says() -> None:
    image, labels = make_ct((128, 128, 40), (3.2, 3.2, 10.0))
    hu, ids = image.array[0], labels.array[0]
    assert image.array.dtype == np.int16
    middle = hu[:, :, 20] > -300
    across = np.flatnonzero(middle[:, 64])
    assert 3.2 * (across[-1] - across[0] + 1) == pytest.approx(350, abs=5)
    assert set(np.unique(ids)) == set(LABELS)
    for label, organ in enumerate(ORGANS, start=1):
        assert np.median(hu[ids == label]) == pytest.approx(organ.hu, abs=8)
    # The liver lies to the right, the spleen to the left; x grows to the right.
    x = image.affine[0, 0] * np.arange(128) + image.affine[0, 3]
    assert np.average(x, weights=(ids == 6).sum(axis=(1, 2))) > 40
    assert np.average(x, weights=(ids == 1).sum(axis=(1, 2))) < -60
    deep = np.median(hu[2:6, 2:6], axis=(0, 1, 2))
    assert deep == pytest.approx(AIR, abs=5)
    assert hu[60:68, 2:6].std() == pytest.approx(NOISE_HU, rel=0.25)


def test_the_table_is_there_and_thin() -> None:
    hu = make_ct((128, 410, 2), (3.2, 1.0, 10.0))[0].array[0, 64, :, 0]
    assert np.count_nonzero(np.abs(hu[330:] - SHEET) < 60) in range(5, 9)


def test_the_seed_changes_organs_and_noise() -> None:
    first, again, other = (make_ct((32, 32, 8), (12.8, 12.8, 50.0), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0].array, again[0].array)
    assert (first[1].array != other[1].array).sum() > 10
    assert (first[0].array != other[0].array).mean() > 0.9


@pytest.mark.parametrize(("shape", "spacing"), [*SIZES.values(), TINY])
def test_the_model_grid_keeps_the_outer_voxel_centres(shape, spacing) -> None:
    for n, edge, new in zip(shape, spacing, model_spacing(shape, spacing), strict=True):
        steps = (n - 1) * edge / new
        assert steps == pytest.approx(round(steps), abs=1e-9)
        assert 1.7 < new / edge < 2.0 or new == edge


def test_monai_and_ours_mean_the_same_on_the_same_windows(task: Task, tmp_path: Path) -> None:
    labels, passes = {}, {}
    for name in WAYS:
        place = tmp_path / name
        place.mkdir()
        passes[name] = Way(name, task).predict(place)
        volume = read_labels(place / "ct.nii.gz")
        np.testing.assert_allclose(volume.affine, make_ct(*TINY)[0].affine, atol=1e-4)
        labels[name] = volume.array[0]
    assert set(np.unique(labels[BASE])) == {0, 5}
    assert (labels[BASE] == labels["same windows"]).mean() >= 0.9999
    # What differs here is the noise that coarser voxels average and plain interpolation does not.
    assert 0.95 < (labels[BASE] == labels["default"]).mean() < 1
    assert 0.02 < (labels[BASE] == 5).mean() < 0.5
    assert passes[BASE].num_windows == passes["same windows"].num_windows == 2 * 2 * 3
    assert passes["default"].num_windows <= passes["same windows"].num_windows
    for name, done in passes.items():
        assert set(done.parts) == set(PARTS)
        # Each part is rounded to 0.1 ms; what a busy machine loses between them belongs to none.
        assert 0 < sum(done.parts.values()) <= done.seconds + 1e-3, name
        assert done.other_seconds == done.seconds - done.parts["network"]


def test_mean_dice_by_hand() -> None:
    truth = np.array([0, 0, 1, 1, 2, 2, 2, 2], dtype=np.uint8)
    labels = np.array([0, 1, 1, 1, 2, 2, 0, 3], dtype=np.uint8)
    assert mean_dice(labels, truth) == pytest.approx(((2 * 2 / 5) + (2 * 2 / 6)) / 2)


def result(pairs: int) -> dict:
    """Return a result in which round n of MONAI takes 10 + n seconds and ours 2, each 1.5 in the network."""
    rows = []
    for way, seconds in {BASE: [10.0 + n for n in range(pairs)], "default": [2.0] * pairs}.items():
        row = {"way": way, "seconds": seconds[0], "seconds_all": seconds, "p10": 1.0, "p90": 2.0}
        row |= {"other_seconds": 0.5, "other_seconds_all": [one - 1.5 for one in seconds]}
        row |= {"parts": dict.fromkeys(PARTS, 0.5), "num_windows": 8, "peak_memory_bytes": 2**30}
        row |= {"same_labels_as_monai": 0.9995, "dice": None, "pairs": pairs, "warmup": 0, "overlap": 0.5}
        row |= {"shape": (4, 5, 6), "spacing_mm": (1.0, 1.0, 2.5), "roi": (16, 16, 16)}
        rows.append({**row, "preset": "vit_tiny_p8", "weights": "random"})
    machine = {"cpu": "A", "threads": 1, "torch": "2", "monai": "1", "load_1min": 0.1}
    return {"machine": machine, "rows": rows}


def test_ratios_are_medians_of_rounds_and_need_five() -> None:
    assert ratio_to_this(result(5), "default") == 6.0
    assert ratio_to_this(result(5), "default", "other_seconds_all") == 21.0
    assert ratio_to_this(result(4), "default") is None
    assert table_rows(result(4))[2][6:8] == ["-", "-"]
    assert table_rows(result(5))[2][6:8] == ["6.00x", "21.00x"]
    assert "1 pair, 0 warm-up" in markdown(result(1))
    assert "no ratio from fewer than 5 pairs" in markdown(result(1))
    assert "no ratio" not in markdown(result(5))


@pytest.mark.parametrize("wrong", [{"size": "huge"}, {"pairs": 0}, {"warmup": -1}])
def test_wrong_settings_are_refused_before_anything_is_made(wrong, monkeypatch) -> None:
    monkeypatch.setattr("sparseg.benchmark.files.make_ct", None)
    with pytest.raises(ConfigError):
        bench_files(**wrong)


@pytest.mark.slow
def test_a_whole_run(monkeypatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    found = bench_files(size="tiny", pairs=1, warmup=0, threads=1)
    assert [row["way"] for row in found["rows"]] == list(WAYS)
    assert all(row["num_windows"] == 1 for row in found["rows"])
    assert all(row["peak_memory_bytes"] > 2**28 for row in found["rows"])
    assert found["rows"][0]["same_labels_as_monai"] == 1.0
