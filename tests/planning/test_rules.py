"""Every rule by value, at its boundaries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planning.tiny import case_facts
from sparseg.datasets.fingerprint import ChannelFingerprint, make_fingerprint
from sparseg.errors import DatasetError
from sparseg.planning.grid import choose_patch, choose_roi, prepared_shape, target_spacing
from sparseg.planning.intensity import channel_modality, choose_intensity, window_hu
from sparseg.planning.keep import choose_elastic_keep, choose_keep_ratio, small_classes
from sparseg.planning.patches import PatchFacts
from sparseg.planning.schedule import (
    choose_flips,
    choose_max_steps,
    choose_validate_every,
    mirrored_pair,
    steps_per_epoch,
)
from sparseg.preprocessing.config import CTIntensity, MRIntensity, PreprocessConfig

PLAIN = ChannelFingerprint(0.0, 1.0, 10.0, 400.0, 100.0, 50.0)
HU = replace(PLAIN, minimum=-1024.0)


@pytest.mark.parametrize(
    ("name", "channel", "expected"),
    [
        ("CT", PLAIN, "ct"),
        ("contrast-CT (portal)", PLAIN, "ct"),
        ("CBCT", PLAIN, "ct"),
        ("T1", HU, "mr"),
        ("t1gd", HU, "mr"),
        ("T2w", HU, "mr"),
        ("FLAIR", HU, "mr"),
        ("MRI", HU, "mr"),
        ("ADC", HU, "mr"),
        ("T10 vertebra", HU, "ct"),  # no T1: its values decide
        ("channel 0", HU, "ct"),
        ("channel 0", replace(HU, minimum=-200.0), "mr"),
        ("channel 0", replace(HU, minimum=-201.0), "ct"),
        ("channel 0", replace(HU, whole_share=0.49), "mr"),
        ("channel 0", replace(HU, whole_share=0.5), "ct"),
        ("direct", PLAIN, "mr"),  # "ct" inside a word says nothing
        ("CT to MR", HU, "ct"),  # both words: its values decide
    ],
)
def test_modality(name: str, channel: ChannelFingerprint, expected: str) -> None:
    assert channel_modality(name, channel).value == expected


def test_ct_window_follows_the_labelled_voxels() -> None:
    found = choose_intensity(["CT"], [replace(HU, low=-57.4, high=198.6)])
    assert found.value == CTIntensity(clip=(-57.0, 199.0))
    assert "-57 and 199 HU" in found.why
    two = choose_intensity(["CT 1", "CT 2"], [replace(HU, low=-10, high=50), replace(HU, low=20, high=300)])
    assert two.value == CTIntensity(clip=(-10.0, 300.0))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, (0, 100)), (0, 99, (-1, 99)), (40, 60, (0, 100)), (0, 0, (-50, 50)), (10.4, 110.6, (10, 111))],
)
def test_window_is_at_least_100_hu(low: float, high: float, expected: tuple[float, float]) -> None:
    assert window_hu(low, high) == expected


def test_mr_and_mixed_channels() -> None:
    assert choose_intensity(["T1", "FLAIR"], [PLAIN, PLAIN]).value == MRIntensity()
    with pytest.raises(DatasetError, match=r"CT: ct, T1: mr") as error:
        choose_intensity(["CT", "T1"], [HU, PLAIN])
    assert error.value.code == "modality-mixed"


def spacing_of(shape: tuple[int, int, int], spacings: list[tuple[float, float, float]]) -> tuple[float, ...]:
    facts = [case_facts(i, shape=shape, spacing=spacing) for i, spacing in enumerate(spacings)]
    return target_spacing(make_fingerprint(facts)).value


def test_target_spacing_is_the_median() -> None:
    assert spacing_of((100, 100, 100), [(1, 1, 1), (2, 1, 1.5), (3, 1, 9)]) == (2.0, 1.0, 1.5)


@pytest.mark.parametrize(
    ("slices", "thick", "expected"),
    [
        (33, [3.1, 3.1, 3.1, 3.1, 2.1], 2.5),  # few and thick: 10th percentile
        (34, [3.1, 3.1, 3.1, 3.1, 2.1], 3.1),  # not less than a third of the voxels
        (33, [3.0, 3.0, 3.0, 3.0, 2.1], 3.0),  # not more than three times as coarse
        (33, [3.1, 3.1, 3.1, 0.5, 0.5], 1.0),  # never finer than the other axes
    ],
)
def test_thick_slices(slices: int, thick: list[float], expected: float) -> None:
    found = spacing_of((100, 100, slices), [(1, 1, edge) for edge in thick])
    assert found == pytest.approx((1.0, 1.0, expected))


def test_prepared_shape() -> None:
    settings = PreprocessConfig(spacing=(2.0, 1.0, 1.0), intensity=CTIntensity())
    case = case_facts(shape=(100, 100, 50), body_shape=(40, 98, 50), nonzero_shape=(60, 60, 20))
    # 40 + 2 x 5 mm at half the resolution; 98 + 2 x 5 is cut off at the image's edge.
    assert prepared_shape(case, settings) == (25, 100, 50)
    mr = PreprocessConfig(spacing=(2.0, 1.0, 1.0), intensity=MRIntensity())
    assert prepared_shape(case, mr) == (35, 70, 30)
    whole = mr.model_copy(update={"foreground_crop": False, "spacing": None})
    assert prepared_shape(case, whole) == (100, 100, 50)


@pytest.mark.parametrize(
    ("spacing", "base", "expected"),
    [
        ((1.0, 1.0, 1.0), 8, (8, 8, 8)),
        ((1.5, 1.5, 2.0), 8, (8, 8, 8)),  # the paper's abdominal grid keeps its patch
        ((1.0, 1.0, 1.41), 8, (8, 8, 8)),
        ((1.0, 1.0, 1.42), 8, (8, 8, 4)),
        ((0.8, 0.8, 3.0), 8, (8, 8, 2)),
        ((0.5, 0.5, 8.0), 8, (8, 8, 1)),
        ((1.0, 1.0, 2.0), 16, (16, 16, 8)),
    ],
)
def test_patches_are_about_cubic(
    spacing: tuple[float, float, float], base: int, expected: tuple[int, int, int]
) -> None:
    assert choose_patch(spacing, base).value == expected


@pytest.mark.parametrize(
    ("shapes", "patch", "most", "expected"),
    [
        ([(200, 200, 200)], (8, 8, 8), 12, (96, 96, 96)),
        ([(96, 89, 88)], (8, 8, 8), 12, (96, 96, 88)),
        ([(200, 200, 30)], (8, 8, 4), 12, (96, 96, 32)),
        ([(9, 5, 3)], (8, 8, 8), 12, (16, 16, 16)),
        ([(9, 5, 3)], (4, 4, 4), 12, (16, 16, 16)),
        ([(40, 40, 40), (60, 60, 60)], (8, 8, 8), 12, (64, 64, 64)),
    ],
)
def test_roi(
    shapes: list[Any], patch: tuple[int, int, int], most: int, expected: tuple[int, int, int]
) -> None:
    assert choose_roi(shapes, patch, most).value == expected


def patches(foreground: float, boundary: float = 0.0, **per_class: int) -> PatchFacts:
    return PatchFacts(100, foreground, boundary, {int(key[1:]): n for key, n in per_class.items()})


@pytest.mark.parametrize(
    ("shares", "stages", "expected"),
    [
        ([0.1, 0.3], 3, 0.67),  # 1.5 x 0.2 = 0.3; its cube root is 0.669
        ([0.0], 3, 0.46),  # at least 0.1; its cube root is 0.464
        ([0.9], 3, 1.0),
        ([0.0], 1, 0.1),
        ([0.6], 3, 0.97),  # 0.9; 0.9655
        ([0.083], 1, 0.12),  # 0.1245
    ],
)
def test_keep_ratio(shares: list[float], stages: int, expected: float) -> None:
    assert choose_keep_ratio([patches(share) for share in shares], stages).value == expected


def test_keep_ratio_says_what_was_measured() -> None:
    why = choose_keep_ratio([patches(0.1, 0.05), patches(0.3, 0.15)], 3).why
    assert "20.0 % of the patches hold a labelled voxel, 10.0 % a boundary" in why
    assert "3 stages (30.0 %; with this ratio 30.1 %)" in why


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (0.12, (0.03, 0.06, 0.12, 0.24)),
        (0.15, (0.04, 0.07, 0.15, 0.3)),  # 0.0375 and 0.075, rounded as floats round
        (0.7, (0.17, 0.35, 0.7, 1.0)),  # 1.4 is all there is; 0.175 lies just below in binary
        (1.0, (0.25, 0.5, 1.0)),
        (0.02, (0.01, 0.02, 0.04)),  # 0.005 would be nothing
    ],
)
def test_elastic_keep_ratios(own: float, expected: tuple[float, ...]) -> None:
    assert choose_elastic_keep(own).value == expected


def test_small_classes() -> None:
    cases = [patches(0.1, i1=50, i2=3), patches(0.1, i1=50, i2=4), patches(0.1, i1=50, i2=3, i3=9)]
    labels = {0: "background", 1: "liver", 2: "duct", 3: "cyst", 4: "shunt"}
    assert small_classes(cases, labels) == [
        "duct (id 2) fills only 3 patches (median of the cases that hold it)",
        "cyst (id 3) is in only 1 of 3 training cases",
        "shunt (id 4) is in no training case",
    ]
    enough = [patches(0.1, i2=4), patches(0.1, i2=4), patches(0.1, i2=4)]
    assert small_classes(enough, {0: "background", 2: "duct"}) == []


@pytest.mark.parametrize(
    ("cases", "expected"), [(1, 500), (2, 500), (3, 750), (80, 20_000), (81, 20_000), (1000, 20_000)]
)
def test_max_steps(cases: int, expected: int) -> None:
    assert choose_max_steps(cases).value == expected


@pytest.mark.parametrize(("steps", "expected"), [(500, 50), (1000, 50), (1020, 51), (20_000, 1000)])
def test_validate_every(steps: int, expected: int) -> None:
    assert choose_validate_every(steps).value == expected


def test_steps_per_epoch() -> None:
    # 4.6 and 1 crops' worth of voxels: 5 + 1 crops in batches of 4.
    assert steps_per_epoch([(100, 10, 46), (10, 10, 10)], (100, 10, 10), 4) == 2
    assert steps_per_epoch([(100, 10, 46), (10, 10, 10)], (100, 10, 10), 1) == 6


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["background", "left kidney", "right kidney"], ("left kidney", "right kidney")),
        (["kidney_right", "kidney_left"], ("kidney_right", "kidney_left")),
        (["LeftLung", "RightLung"], ("LeftLung", "RightLung")),
        (["hippocampus L", "hippocampus R"], ("hippocampus L", "hippocampus R")),
        (["left atrium", "right ventricle"], None),
        (["left atrium"], None),
        (["liver", "bright spot", "cleft"], None),
    ],
)
def test_left_and_right(names: list[str], pair: tuple[str, str] | None) -> None:
    assert mirrored_pair(names) == pair
    assert choose_flips(names).value == (0.2 if pair is None else 0.0, 0.2, 0.2)


def test_numbers_of_the_rules_are_plain() -> None:
    """YAML must not meet NumPy's numbers."""
    found = target_spacing(make_fingerprint([case_facts()])).value
    assert all(type(edge) is float for edge in found)
    assert not any(isinstance(edge, np.generic) for edge in choose_patch(found, 8).value)
