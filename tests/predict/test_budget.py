"""The budget: what a case takes is predicted from its header, and the thriftiest needed is chosen."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from predict.threshold_model import tiny_card, tiny_net, tiny_preprocess
from sparseg.errors import ConfigError, ResourceError
from sparseg.predict import budget, estimate
from sparseg.predict.budget import MIN_PAGES, MemoryGuard, apply_plan, choose, limit_gpu, plan_run
from sparseg.predict.case_size import CaseSize, grids_of, size_of_case
from sparseg.predict.ensemble import Ensemble
from sparseg.predict.estimate import (
    Estimate,
    case_seconds,
    disk_bytes,
    duration_text,
    estimate_run,
    peak_bytes,
    require_disk,
    size_text,
    survey,
    temporary_bytes,
)
from sparseg.predict.footprint import SLACK, ModelLoad, footprint
from sparseg.predict.inputs import PredictionCase
from sparseg.predict.label_files import LabelFiles
from sparseg.predict.machine import PeakMeter, free_disk, free_memory, resident_bytes, total_memory
from sparseg.predict.predictor import Predictor
from sparseg.predict.probe import measure_model
from sparseg.predict.reading import ReadOptions
from sparseg.predict.settings import PredictSettings
from sparseg.preprocessing.pipeline import prepare

MIB = 2**20
ROI = (16, 16, 16)
MODEL = ModelLoad(400 * MIB, 100 * MIB, (0.5,), (ROI,), 14, (0.5,))
LARGE = CaseSize((512, 512, 160), (512, 512, 160), (274, 274, 200), 1, 2)
SETTINGS = PredictSettings(overlap_cases=True)


def image_file(path: Path, shape: tuple[int, ...] = (20, 12, 18), spacing: float = 1.0) -> Path:
    values = np.random.default_rng(0).integers(0, 300, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([spacing, spacing, spacing, 1.0])), path)
    return path


def case_of(path: Path) -> PredictionCase:
    return PredictionCase(path.name, path, path.parent / "out" / path.name)


def predictor(**changes: object) -> Predictor:
    net = tiny_net()
    return Predictor(net, tiny_card(net, foreground_crop=False), PredictSettings(**changes))  # type: ignore[arg-type]


def test_windows_and_shapes_follow_from_the_header_alone(tmp_path: Path) -> None:
    config = tiny_preprocess(spacing=(0.5, 2.0, 1.0), foreground_crop=False)
    affine = np.array([[0, 0, -2.0, 0], [1.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    values = np.random.default_rng(0).integers(0, 300, (30, 9, 11)).astype(np.int16)
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    size = size_of_case(path, (), config, ReadOptions())
    real = prepare(ReadOptions().read(path), config).image.shape
    assert size == CaseSize((30, 9, 11), (11, 30, 9), real, 1, 2)
    assert size.model_shape == (44, 23, 9)
    assert size.padded_shape(ROI) == (44, 23, 16)
    assert size.num_windows(ROI, 0.5) == 5 * 2 * 1


def test_a_spacing_of_none_keeps_the_voxels_on_ras_axes() -> None:
    affine = np.array([[0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    assert grids_of((7, 8, 9), affine, tiny_preprocess()) == ((9, 7, 8), (9, 7, 8))


def test_bytes_of_a_case_by_hand() -> None:
    found = footprint(LARGE, MODEL, SETTINGS)
    voxels, model = 512 * 512 * 160, 274 * 274 * 200
    assert found.load == 4 * voxels + 4 * model + 8 * int(voxels * (274 / 512) ** 2) + SLACK
    assert found.windows == 4 * model * (1 + 15) + 100 * MIB + SLACK
    assert found.finish > 4 * model * 15 + voxels
    assert found.in_file == 0
    in_file = footprint(LARGE, MODEL, replace(SETTINGS, max_bytes=MIN_PAGES))
    assert in_file.in_file == 14 * 4 * model
    assert in_file.load == found.load
    assert (
        4 * model * 2 + MIN_PAGES + 100 * MIB
        < in_file.windows - SLACK
        < 4 * model * 2 + MIN_PAGES + 104 * MIB
    )


def test_bytes_while_reading_and_preparing() -> None:
    """An axis that keeps its voxels saves the array in between; slopes and MR take float64."""
    voxels = 100 * 100 * 50
    same = CaseSize((100, 100, 50), (100, 100, 50), (100, 100, 50), 1, 2)
    assert footprint(same, MODEL, SETTINGS).load == 8 * voxels + SLACK
    scaled = replace(same, is_scaled=True)
    assert footprint(scaled, MODEL, SETTINGS).load == (4 + 2 + 8) * voxels + SLACK
    mr = footprint(same, replace(MODEL, standardises=True), SETTINGS)
    assert mr.load == (4 + 4 + 17) * voxels + SLACK
    four = footprint(replace(same, num_channels=4), MODEL, SETTINGS)
    assert four.load == 4 * 3 * 4 * voxels + SLACK


@pytest.mark.parametrize(
    ("change", "grows"),
    [
        ({"batch_size": 3}, "windows"),
        ({"files": LabelFiles("seg.nrrd")}, "finish"),
        ({"previews": True}, "finish"),
        ({"finish_slab": 64}, "finish"),
        ({"files": LabelFiles(maps=("probabilities",))}, "finish"),
    ],
    ids=str,
)
def test_what_takes_more(change: dict[str, object], grows: str | None) -> None:
    plain, found = footprint(LARGE, MODEL, SETTINGS), footprint(LARGE, MODEL, replace(SETTINGS, **change))  # type: ignore[arg-type]
    for phase in ("load", "windows", "finish"):
        more = getattr(found, phase) > getattr(plain, phase)
        assert more == (phase == grows), phase


def test_several_models_hold_their_mean_beside_the_sums() -> None:
    one = footprint(LARGE, MODEL, SETTINGS)
    both = replace(MODEL, seconds_per_window=(0.5, 0.5), rois=(ROI, ROI), overlaps=(0.5, 0.5))
    two = footprint(LARGE, both, SETTINGS)
    sums = 4 * 14 * prod(LARGE.model_shape)
    assert two.windows - one.windows == sums
    regions = footprint(LARGE, replace(both, regions=True), SETTINGS)
    assert regions.windows - one.windows == 2 * sums


def test_cases_that_overlap_add_up() -> None:
    found = footprint(LARGE, MODEL, SETTINGS)
    assert found.peak(overlapping=True) == found.load + found.windows + found.finish
    assert found.peak(overlapping=False) == max(found.load, found.windows, found.finish)


def least(settings: PredictSettings, num_cases: int = 3) -> int:
    return peak_bytes(LARGE, MODEL, settings, overlapping=settings.cases_overlap and num_cases > 1)


def test_the_order_of_what_is_chosen() -> None:
    several = replace(SETTINGS, batch_size=4, finish_slab=64)
    steps = [
        (several, ()),
        (replace(several, overlap_cases=False), ("one case at a time",)),
        (
            replace(several, overlap_cases=False, max_bytes=MIN_PAGES),
            ("one case at a time", "sums in a temporary file"),
        ),
    ]
    for settings, changes in steps:
        found = choose([LARGE], 3, MODEL, several, least(settings))
        assert found[1] == changes
        assert found[0] == settings
        assert choose([LARGE], 3, MODEL, several, least(settings) - 1)[1] != changes


def test_slabs_before_batches() -> None:
    thick = replace(SETTINGS, batch_size=2, finish_slab=400)
    file = replace(thick, max_bytes=MIN_PAGES)
    found, changes = choose([LARGE], 1, MODEL, thick, least(file, 1) - 1)
    assert changes == ("sums in a temporary file", "labels in slabs of 4")
    assert (found.finish_slab, found.batch_size) == (4, 2)
    batches = replace(SETTINGS, batch_size=40)
    found, changes = choose([LARGE], 1, MODEL, batches, 1000 * MIB)
    assert changes == ("sums in a temporary file", "labels in slabs of 1", "one window at a time")
    assert (found.finish_slab, found.batch_size) == (1, 1)


@pytest.mark.parametrize("allowed", range(1000 * MIB, 3000 * MIB, 77 * MIB))
def test_what_is_chosen_fits(allowed: int) -> None:
    found, _ = choose(
        [LARGE, CaseSize((64, 64, 64), (64, 64, 64), (64, 64, 64), 1, 4)], 2, MODEL, SETTINGS, allowed
    )
    assert peak_bytes(LARGE, MODEL, found, overlapping=found.cases_overlap) <= allowed


def test_a_case_that_cannot_fit_does_not_spoil_the_others() -> None:
    huge = CaseSize((2000, 2000, 2000), (2000, 2000, 2000), (2000, 2000, 2000), 1, 2)
    small = CaseSize((64, 64, 64), (64, 64, 64), (64, 64, 64), 1, 2)
    found, changes = choose([huge, small], 2, MODEL, SETTINGS, 2 * 2**30)
    assert (found, changes) == (SETTINGS, ())
    assert choose([huge], 1, MODEL, SETTINGS, 2 * 2**30)[0].finish_slab == 1


def test_the_guard_refuses_before_reading(tmp_path: Path) -> None:
    path = image_file(tmp_path / "a.nii")
    size = size_of_case(path, (), tiny_preprocess(), ReadOptions())
    needed = peak_bytes(size, MODEL, SETTINGS, overlapping=False)
    MemoryGuard(MODEL, SETTINGS, tiny_preprocess(), needed)(path)
    with pytest.raises(
        ConfigError, match=r"20 x 12 x 18 voxels that take up to .* MiB; give --max-ram 0\.\dG"
    ) as caught:
        MemoryGuard(MODEL, SETTINGS, tiny_preprocess(), needed - 1)(path)
    assert caught.value.code == "memory-budget"


def test_a_predictor_asks_its_guard_first(tmp_path: Path) -> None:
    found = predictor()
    path = image_file(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes() + b"damage after the voxels, which only reading them would notice")
    found.guard = MemoryGuard(MODEL, SETTINGS, found.card.preprocess, MIB)
    with pytest.raises(ConfigError) as caught:
        found.load(path)
    assert caught.value.code == "memory-budget"


def test_few_windows_are_not_worth_a_look(tmp_path: Path) -> None:
    case = case_of(image_file(tmp_path / "a.nii", (16, 16, 16)))
    plan = plan_run(predictor(), [case])
    assert plan.estimate is None
    assert plan.settings == PredictSettings()


def test_a_plan_is_applied_to_all_of_a_run(tmp_path: Path) -> None:
    case = case_of(image_file(tmp_path / "a.nii", (40, 40, 24)))
    found = predictor(batch_size=8)
    plan = plan_run(found, [case, case], max_ram=10 * MIB)
    assert not plan.fits
    apply_plan(found, plan)
    assert found.settings.batch_size == 1
    assert found.settings.max_bytes == MIN_PAGES
    assert found.guard is not None
    roomy = plan_run(predictor(), [case], max_ram=total_memory())
    assert roomy.fits
    assert roomy.changes == ()
    assert roomy.estimate is not None
    assert (roomy.estimate.num_cases, roomy.estimate.num_unknown) == (1, 0)


def test_little_free_memory_makes_thrifty_but_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda: 0)
    case = case_of(image_file(tmp_path / "a.nii", (40, 40, 24)))
    plan = plan_run(predictor(), [case])
    assert plan.changes == ("sums in a temporary file", "labels in slabs of 1")
    assert plan.guard is None


def test_headers_that_say_nothing_are_left_to_the_reader(tmp_path: Path) -> None:
    good = case_of(image_file(tmp_path / "good.nii.gz"))
    (tmp_path / "bad.nii").write_bytes(b"nothing")
    (tmp_path / "series.zip").write_bytes(b"nothing")
    cases = [
        case_of(tmp_path / "bad.nii"),
        case_of(tmp_path / "series.zip"),
        good,
        case_of(tmp_path / "no.nii"),
    ]
    sizes = survey(predictor(), cases)
    assert list(sizes) == ["good.nii.gz"]
    assert survey(predictor(), cases, seconds=-1.0) == {}
    found = estimate_run(sizes, 4, MODEL, SETTINGS)
    assert (found.num_cases, found.num_unknown, found.largest) == (4, 3, (20, 12, 18))
    assert found.seconds == pytest.approx(4 * case_seconds(sizes["good.nii.gz"], MODEL))


def test_seconds_and_disk_by_hand() -> None:
    size = CaseSize((32, 16, 16), (32, 16, 16), (32, 16, 16), 1, 2)
    voxels = 32 * 16 * 16
    rest = voxels * (estimate.SECONDS_PER_VOXEL + 14 * estimate.SECONDS_PER_LOGIT)
    assert case_seconds(size, MODEL) == pytest.approx(3 * 0.5 + rest)
    rois = (ROI, (32, 16, 16))
    two = replace(MODEL, seconds_per_window=(0.5, 3.0), rois=rois, overlaps=(0.5, 0.0))
    assert case_seconds(size, two) == pytest.approx(
        3 * 0.5 + 1 * 3.0 + rest + voxels * 14 * estimate.SECONDS_PER_LOGIT
    )
    maps = replace(SETTINGS, files=LabelFiles(maps=("probabilities", "uncertainty")))
    assert disk_bytes(size, MODEL, SETTINGS) == int(0.02 * voxels)
    assert disk_bytes(size, MODEL, maps) == int((0.02 + 0.5 * 15) * voxels)
    assert temporary_bytes(size, MODEL, maps) == 15 * voxels
    assert temporary_bytes(size, MODEL, replace(SETTINGS, max_bytes=0)) == 14 * 4 * voxels


@pytest.mark.parametrize(("disk", "temporary"), [(2**62, 0), (0, 2**62)])
def test_no_room_on_the_disk(tmp_path: Path, disk: int, temporary: int) -> None:
    found = Estimate(1, 0, (1, 1, 1), 1, 1.0, disk, temporary)
    with pytest.raises(ResourceError, match="GiB free") as caught:
        require_disk(found, tmp_path / "not" / "there")
    assert caught.value.code == "disk-space"
    require_disk(replace(found, disk_bytes=1, temporary_bytes=1), tmp_path)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_windows_are_measured(batch_size: int) -> None:
    found = measure_model(predictor(batch_size=batch_size))
    assert 50 * MIB < found.resident_bytes < 8 * 2**30
    assert 0 <= found.window_bytes < 2**30
    assert 0 <= found.batch_bytes < 2**30
    assert batch_size > 1 or found.batch_bytes == 0
    (seconds,) = found.seconds_per_window
    assert 0 < seconds < 60
    assert (found.rois, found.num_classes, found.overlaps) == ((ROI,), 3, (0.5,))


def test_each_model_is_measured_with_windows_of_its_own() -> None:
    """A window of the first would not fit the patches of the second, and say too little of its memory."""
    nets = [tiny_net(), tiny_net(roi_size=(16, 32, 16), patch_size=16)]
    members = [Predictor(net, tiny_card(net, foreground_crop=False), PredictSettings()) for net in nets]
    for one, other in (members, members[::-1]):
        found = measure_model(Ensemble([one, other]))
        assert found.rois == (one.card.model.roi_size, other.card.model.roi_size)
        assert found.roi == (16, 32, 16)
        assert found.num_windows(LARGE) == tuple(
            LARGE.num_windows(member.card.model.roi_size, 0.5) for member in (one, other)
        )


def test_each_window_of_a_batch_counts_and_the_batch_once() -> None:
    batches = replace(MODEL, window_bytes=10 * MIB, batch_bytes=90 * MIB)
    one, four = (footprint(LARGE, batches, replace(SETTINGS, batch_size=n)).windows for n in (1, 4))
    assert one == footprint(LARGE, MODEL, SETTINGS).windows
    assert four - one == 30 * MIB


def test_a_window_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bound the windows fall back by themselves; a bound could not be kept."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(budget, "measure_model", full)
    case = case_of(image_file(tmp_path / "a.nii", (40, 40, 24)))
    assert plan_run(predictor(), [case]).estimate is None
    with pytest.raises(ResourceError) as caught:
        plan_run(predictor(), [case], max_ram=2**40)
    assert caught.value.code == "out-of-memory"


def test_the_meter_starts_over() -> None:
    block = np.ones(48 * MIB, dtype=np.uint8)
    del block
    meter = PeakMeter()
    low = meter.peak
    block = np.ones(64 * MIB, dtype=np.uint8)
    assert block[-1] == 1
    del block
    assert 60 * MIB <= meter.peak - low <= 68 * MIB
    assert resident_bytes() <= meter.peak


def test_what_the_machine_has(tmp_path: Path) -> None:
    assert 0 < free_memory() < total_memory()
    assert free_disk(tmp_path / "a" / "b") > 0


def test_a_control_group_is_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "fs" / "job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("700000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 200000\nactive_file 5\n")
    (tmp_path / "fs" / "memory.max").write_text("max\n")
    (tmp_path / "cgroup").write_text("0::/job\n")
    monkeypatch.setattr("sparseg.predict.machine._CGROUPS", tmp_path / "fs")
    monkeypatch.setattr("sparseg.predict.machine._PROC", tmp_path)
    assert free_memory() == 500000


def test_gpu_limits_need_a_gpu() -> None:
    with pytest.raises(ConfigError, match="--max-ram") as caught:
        limit_gpu("cpu", 2**30)
    assert caught.value.code == "max-vram"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (80, "1 min 20 s"), (3599.9, "1 h 0 min"), (7380, "2 h 3 min")],
)
def test_times_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(12345, "12 KiB"), (300 * MIB, "300 MiB"), (2.13 * 2**30, "2.13 GiB")]
)
def test_sizes_read_well(size: float, text: str) -> None:
    assert size_text(size) == text
