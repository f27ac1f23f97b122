"""A dataset of phantoms on disk and runs of a few steps on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparseg.datasets.cache_arrays import pick_locations
from sparseg.preprocessing.config import CTIntensity, PreprocessConfig
from sparseg.training.config import TrainConfig
from sparseg.training.data import open_dataset
from sparseg.training.loop import Run
from sparseg.training.monitor import StepInfo
from sparseg.training.start import train
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

CT = PreprocessConfig(intensity=CTIntensity(clip=(-100.0, 300.0)), foreground_crop=False)


@dataclass(frozen=True)
class MemoryCase:
    """A prepared case in memory."""

    image: np.ndarray
    label: np.ndarray

    @property
    def locations(self) -> dict[int, np.ndarray]:
        return pick_locations(self.label, 20_000)


def write_toy_dataset(root: Path, num_cases: int = 3, **content: Any) -> Path:
    """Write `num_cases` phantoms of 20 x 18 x 16 voxels with classes liver and tumor."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    names = [f"case{number}" for number in range(num_cases)]
    for seed, name in enumerate(names):
        image, labels = make_phantom((20, 18, 16), num_classes=3, seed=seed)
        write_image(root / "imagesTr" / f"{name}.nii.gz", image)
        write_label_map(root / "labelsTr" / f"{name}.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]
    description = {
        "name": "toy",
        "channel_names": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumor"},
        "training": listed,
    }
    (root / "dataset.json").write_text(json.dumps(description | content))
    return root


def toy_config(**changes: Any) -> TrainConfig:
    """Six steps of the tiny model, with everything random that a run can have."""
    values: dict[str, Any] = {
        "preset": "test_tiny",
        "model": {"drop_path": 0.2, "noise_scale": 0.5, "feature_size": 2},
        "preprocess": CT.model_dump(),
        "augment": {"affine": 0.5, "noise": (0.5, 0.05)},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2, "layer_decay": 0.8},
        "max_steps": 6,
        "validate_every": 3,
        "overlap": 0.0,
    }
    return TrainConfig.model_validate(values | changes)


class Watcher:
    """A monitor that remembers, and calls back after a step or a validation."""

    def __init__(
        self,
        *,
        after_step: Callable[[int], None] = lambda _: None,
        after_validation: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.losses: list[float] = []
        self.dice: list[float] = []
        self.after_step, self.after_validation = after_step, after_validation

    def on_step(self, info: StepInfo) -> None:
        assert info.crops_per_second > 0
        assert 0 <= info.data_wait < 1
        assert 0 < info.share_done <= 1
        assert info.memory_bytes > 2**20
        self.losses.append(info.loss)
        self.after_step(info.step)

    def on_validation(
        self, step: int, dice: dict[str, float], mean: float, best: float, best_step: int
    ) -> None:
        assert best >= mean or best_step == step
        assert list(dice) == ["liver", "tumor"]
        self.dice.append(mean)
        self.after_validation(step)


def run_toy(
    dataset: Path,
    folder: Path,
    watcher: Watcher | None = None,
    *,
    resume: bool = False,
    until: int | None = None,
    **changes: Any,
) -> tuple[Run, int | None]:
    """Train (or resume) in `folder`; returns the run and the signal that stopped it."""
    run, _, received = train(
        *open_dataset(dataset),
        folder,
        toy_config(**changes),
        watcher or Watcher(),
        resume=resume,
        until=until,
    )
    return run, received
