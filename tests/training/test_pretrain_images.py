"""What pre-training learns from: images of any layout or of a plain folder, cut into crops; its pictures."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hazards.dicom_faults import make_slices, save_series
from sparseg.datasets.dataset import Dataset
from sparseg.errors import ConfigError, DatasetError
from sparseg.models.autoencoder import AutoencoderConfig, MaskedAutoencoder, patchify
from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import preset
from sparseg.training.pretrain import images
from sparseg.training.pretrain.config import (
    CropConfig,
    PretrainConfig,
    from_training_settings,
    segmenter_config,
)
from sparseg.training.pretrain.crops import ImageCrops, change, content_share, random_centre
from sparseg.training.pretrain.images import open_images
from sparseg.training.pretrain.pictures import reconstruct_masked
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom
from training.toy import write_toy_dataset

STILL = CropConfig(content_share=0, flip=(0, 0, 0), intensity_scale=(0, 0), intensity_shift=(0, 0))


@dataclass(frozen=True)
class MemoryImage:
    """A prepared image in memory."""

    image: np.ndarray


def names(dataset_path: Path, **options: bool) -> list[str]:
    dataset, facts = open_images(dataset_path, workers=1, **options)
    assert len(facts) == len(dataset.training)
    assert all(fact.label_counts is None for fact in facts)
    assert not any(case.labelled for case in dataset.training)
    return sorted(case.name for case in dataset.training)


def write_images(root: Path, count: int = 2) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        write_image(root / f"scan{seed}.nii.gz", make_phantom((10, 9, 8), seed=seed)[0])
    return root


def test_training_and_test_cases_are_taken_and_labels_are_not_read(tmp_path: Path) -> None:
    root = write_toy_dataset(tmp_path / "data", 2, test=["imagesTr/case9.nii.gz"])
    write_image(root / "imagesTr" / "case9.nii.gz", make_phantom((10, 9, 8), seed=9)[0])
    (root / "labelsTr" / "case0.nii.gz").write_bytes(b"no volume")
    assert names(root) == ["case0", "case1", "case9"]
    assert names(root, training_only=True) == ["case0", "case1"]


def test_an_image_that_only_lacks_its_label_is_taken(tmp_path: Path) -> None:
    root = write_toy_dataset(tmp_path / "data", 2)
    (root / "dataset.json").unlink()
    (root / "imagesTr").rename(root / "images")
    (root / "labelsTr").rename(root / "labels")
    (root / "labels" / "case1.nii.gz").unlink()
    assert names(root) == ["case0", "case1"]


def test_a_plain_folder_of_images_and_a_single_file(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "scans")
    (folder / "notes.txt").write_text("not an image")
    assert names(folder) == ["scan0", "scan1"]
    assert names(folder, training_only=True) == ["scan0", "scan1"]
    assert names(folder / "scan1.nii.gz") == ["scan1"]
    dataset, facts = open_images(folder, workers=1)
    assert dataset.channels == ("image",)
    assert facts[0].shape == (10, 9, 8)
    (folder / "sparseg.yaml").write_text("name: heads\nchannels: [CT]\n")
    declared, _ = open_images(folder, workers=1)
    assert (declared.name, declared.channels) == ("heads", ("CT",))


def test_dicom_series_stand_beside_image_files(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "scans", 1)
    (folder / "series").mkdir()
    save_series(folder / "series", make_slices())
    assert names(folder) == ["scan0", "series"]
    (folder / "scan0.nii.gz").unlink()
    assert len(names(folder)) == 1


def test_what_holds_no_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="known layout"):
        open_images(tmp_path / "empty")
    with pytest.raises(DatasetError, match="must exist"):
        open_images(tmp_path / "nowhere")
    nothing = Dataset("none", ("CT",), {}, (), (), tmp_path, layout="DICOM")
    monkeypatch.setattr(images, "list_images", lambda _: nothing)
    with pytest.raises(DatasetError, match="must hold images"):
        open_images(tmp_path)


def test_a_bad_image_is_refused_or_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_images(tmp_path / "scans")
    (folder / "scan1.nii.gz").write_bytes((folder / "scan1.nii.gz").read_bytes()[:-40])
    with pytest.raises(DatasetError, match="case scan1"):
        open_images(folder, workers=1)
    with caplog.at_level(logging.WARNING, logger="sparseg"):
        assert names(folder, skip_bad=True) == ["scan0"]
    assert "left out scan1" in caplog.text


def test_every_crop_is_a_piece_of_its_image_and_all_places_occur() -> None:
    image = np.arange(6 * 7 * 5, dtype=np.float32).reshape(1, 6, 7, 5)
    crops = ImageCrops([MemoryImage(image)], (4, 4, 4), STILL, pad_value=-1.0, seed=0)
    starts = set()
    for number in range(300):
        crop = crops[number].numpy()
        start = np.unravel_index(int(crop[0, 0, 0, 0]), image.shape[1:])
        starts.add(tuple(int(i) for i in start))
        piece = tuple(slice(i, i + 4) for i in start)
        np.testing.assert_array_equal(crop[0], image[0][piece])
    assert starts == {(i, j, k) for i in range(3) for j in range(4) for k in range(2)}


def test_a_small_image_lies_in_the_middle_of_padding() -> None:
    image = np.ones((2, 2, 6, 3), np.float16)
    crop = ImageCrops([MemoryImage(image)], (4, 4, 4), STILL, pad_value=-1.0, seed=0)[0]
    assert crop.dtype == torch.float32
    assert (crop == 1).sum() == 2 * 2 * 4 * 3
    assert (crop[:, [0, 3]] == -1).all()


def test_crops_depend_on_seed_and_number_alone() -> None:
    rng = np.random.default_rng(0)
    cases = [MemoryImage(rng.normal(size=(1, 9, 9, 9)).astype(np.float32)) for _ in range(3)]
    one = ImageCrops(cases, (4, 4, 4), CropConfig(), pad_value=0.0, seed=1)
    two = ImageCrops(cases, (4, 4, 4), CropConfig(), pad_value=0.0, seed=1)
    other = ImageCrops(cases, (4, 4, 4), CropConfig(), pad_value=0.0, seed=2)
    expected = [one[number] for number in range(4)]
    assert all(torch.equal(two[number], expected[number]) for number in (3, 1, 0, 2))
    assert not any(torch.equal(other[number], expected[number]) for number in range(4))


def test_crops_of_air_are_drawn_again() -> None:
    image = np.full((1, 40, 8, 8), -1.0, np.float32)
    image[:, :8] = 0.5
    config = STILL.model_copy(update={"content_share": 0.2})
    filled = [
        content_share(ImageCrops([MemoryImage(image)], (8, 8, 8), c, pad_value=-1.0, seed=0)[n].numpy(), -1.0)
        for c in (STILL, config)
        for n in range(200)
    ]
    without, with_rule = (np.mean(np.array(part) > 0) for part in (filled[:200], filled[200:]))
    assert with_rule > 1.8 * without
    assert content_share(image[:, :16], -1.0) == 0.5


def test_random_centres_are_bounds_of_the_volume() -> None:
    rng = np.random.default_rng(0)
    drawn = {random_centre((5, 4, 2), (4, 4, 4), rng) for _ in range(60)}
    assert drawn == {(2, 2, 1), (3, 2, 1)}


def test_changes_mirror_and_scale_around_the_background() -> None:
    crop = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    rng = np.random.default_rng(0)
    mirrored = change(crop, STILL.model_copy(update={"flip": (1.0, 0.0, 1.0)}), rng, pad_value=0.0)
    np.testing.assert_array_equal(mirrored, crop[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(change(crop, STILL, rng, pad_value=0.0), crop)
    scaled = change(crop, STILL.model_copy(update={"intensity_scale": (1.0, 0.5)}), rng, pad_value=3.0)
    assert scaled[0, 0, 1, 1] == 3.0
    ratio = (scaled - 3)[crop != 3] / (crop - 3)[crop != 3]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert 0.5 <= ratio[0] <= 1.5
    shifted = change(crop, STILL.model_copy(update={"intensity_shift": (1.0, 0.5)}), rng, pad_value=3.0)
    assert 0 < abs(shifted - crop).max() <= 0.5
    assert np.ptp(shifted - crop) < 1e-6


def test_a_picture_shows_the_same_mask_each_time_and_only_hidden_patches_change() -> None:
    torch.manual_seed(0)
    net = MaskedAutoencoder(SegmenterConfig(**preset("test_tiny")), AutoencoderConfig(decoder_depth=1))
    image = torch.randn(1, 16, 16, 16)
    rebuilt, hidden = reconstruct_masked(net, image)
    again, same = reconstruct_masked(net, image)
    assert net.training
    assert torch.equal(rebuilt, again)
    assert torch.equal(hidden, same)
    by_patch = patchify(hidden[None, None].float(), (4, 4, 4)).mean(dim=2)
    assert set(by_patch.unique().tolist()) == {0.0, 1.0}
    assert by_patch.sum() == 48
    assert torch.equal(rebuilt[0][~hidden], image[0][~hidden])
    assert not torch.isclose(rebuilt[0][hidden], image[0][hidden]).all()


def test_settings_of_a_training_give_what_both_have_in_common(tmp_path: Path) -> None:
    plan = {
        "preset": "test_tiny", "batch_size": 7, "model": {"roi_size": [16, 16, 8]}, "validate_every": 5,
        "augment": {"flip": [0, 0, 0]}, "max_steps": 9, "seed": 4,
    }  # fmt: skip
    assert from_training_settings(plan) == {
        "preset": "test_tiny", "model": {"roi_size": [16, 16, 8]}, "seed": 4,
    }  # fmt: skip
    own = {"preset": "test_tiny", "store_every": 5, "batch_size": 7}
    assert from_training_settings(own) == own
    with pytest.raises(ConfigError, match=r"plan\.yaml: .*unknown configuration key"):
        from_training_settings({"validate_every": 5, "nonsense": 1}, where=tmp_path / "plan.yaml")
    config = segmenter_config(PretrainConfig(**from_training_settings(plan)), 2)
    assert (config.in_channels, config.roi_size) == (2, (16, 16, 8))
    with pytest.raises(ConfigError, match="preset must be one of"):
        segmenter_config(PretrainConfig(preset="vit_huge"), 1)
    assert json.loads(config.model_dump_json())["patch_size"] == [4, 4, 4]
