"""A dataset of phantoms, and a cross-validation of it as training would leave it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from predict.threshold_model import NAMES, tiny_card, tiny_net
from sparseg.checkpoints.folder import save_model
from sparseg.crossval.folder import CrossValidation, create
from sparseg.datasets.splits import Splits
from sparseg.training.config import TrainConfig
from sparseg.training.data import open_dataset
from sparseg.volumes.nifti_writer import write_image, write_label_map
from sparseg.volumes.phantoms import make_phantom

CASES = ("a", "b", "c", "d")
SPLITS = Splits((("a", "c"), ("b", "d")), seed=3)


def write_dataset(root: Path, names: tuple[str, ...] = CASES) -> Path:
    """Phantoms of 18 x 16 x 17 voxels in Decathlon layout; the last one has no tumor."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(names):
        image, labels = make_phantom((18, 16, 17), num_classes=3 - (name == names[-1]), seed=seed)
        write_image(root / "imagesTr" / f"{name}.nii.gz", image)
        write_label_map(root / "labelsTr" / f"{name}.nii.gz", labels.array[0].astype(np.uint8), labels.affine)
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]
    labels = {str(number): name for number, name in NAMES.items()}
    content = {"name": "toy", "channel_names": {"0": "CT"}, "labels": labels, "training": listed}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def write_progress(run: Path, *, step: int = 2, finished: bool = True, dice: float = 0.5) -> None:
    """The record of a training state, and a log, as a run of `step` steps leaves them."""
    (run / "state").mkdir(parents=True, exist_ok=True)
    progress = {"step": step, "minutes": 1.5, "finished": finished}
    (run / "state" / f"step_{step:08d}.json").write_text(json.dumps({"progress": progress}))
    rows = [{"kind": "train", "step": number, "loss": 1.0 / number} for number in range(1, step + 1)]
    rows.append({"kind": "validation", "step": step, "mean_dice": dice})
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_fold(run: Path, seed: int) -> None:
    """A finished run whose network has weights of its own."""
    net = tiny_net()
    torch.manual_seed(seed)
    for value in net.parameters():
        value.data += 0.1 * torch.randn_like(value)
    save_model(run / "best", net, tiny_card(net, foreground_crop=False))
    write_progress(run)


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    """Four cases."""
    return write_dataset(tmp_path / "data")


@pytest.fixture
def trained(tmp_path: Path, dataset_folder: Path) -> CrossValidation:
    """Two trained folds of the four cases."""
    dataset, facts = open_dataset(dataset_folder, workers=1)
    config = TrainConfig(preset="test_tiny", max_steps=2, seed=5)
    found = create(tmp_path / "cv", config, SPLITS, dataset, facts)
    for fold in found.folds:
        save_fold(found.run(fold), seed=fold)
    return found
