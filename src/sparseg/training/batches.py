"""Batches of crops: which crop goes to which process, and masks where regions overlap."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sparseg.datasets.dataset import Dataset
from sparseg.datasets.label_table import region_masks
from sparseg.shapes import Triple
from sparseg.training.augment import make_augmentation
from sparseg.training.config import TrainConfig
from sparseg.training.data import TrainingData
from sparseg.training.sampling import CropDataset

Batch = tuple[Tensor, Tensor]


def crop_numbers(first: int, batch_size: int, *, world: int, rank: int) -> Iterator[list[int]]:
    """Crop numbers of each batch of one process: no crop twice, the same after a resumption.

    Args:
        first: Number of the first crop that no process has used.
        batch_size: Crops per batch and process.
        world: Processes.
        rank: This process.
    """
    start = first + rank * batch_size
    while True:
        yield list(range(start, start + batch_size))
        start += world * batch_size


def make_batches(
    dataset: Dataset,
    data: TrainingData,
    config: TrainConfig,
    roi: Triple,
    *,
    first_crop: int,
    world: int,
    rank: int,
) -> Iterator[Batch]:
    """Yield (image `[B,C,*roi]` float32, target) for ever.

    The target is ids `[B,1,*roi]` int64, or masks `[B,R,*roi]` float32 with regions.
    """
    crops = CropDataset(
        data.training,
        roi,
        make_augmentation(config.augment, roi),
        positive_share=config.positive_share,
        pad_value=data.preprocess.background_value,
        seed=config.seed,
        sampling=config.sampling,
    )
    loader = DataLoader(
        crops,
        batch_sampler=crop_numbers(first_crop, config.batch_size, world=world, rank=rank),
        num_workers=config.num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        # A generator of its own: the loader draws a seed, and must not draw it from the step's generator.
        generator=torch.Generator(),
    )
    for image, label in loader:
        if dataset.regions:
            masks = [region_masks(one[0].numpy(), dataset.regions) for one in label]
            yield image, torch.from_numpy(np.stack(masks)).float()
        else:
            yield image, label


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C and torchrun's SIGTERM reach all processes; workers must live until the last step is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
