"""The training loop: read top to bottom."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from sparseg.checkpoints.card import ModelCard, Provenance
from sparseg.checkpoints.folder import load_strict, save_model
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.label_table import region_masks
from sparseg.errors import ConfigError, NumericsError
from sparseg.models.build import build_segmenter
from sparseg.models.segmenter import SparseUNETR
from sparseg.training import log
from sparseg.training.augment import make_augmentation
from sparseg.training.config import TrainConfig
from sparseg.training.data import TrainingData
from sparseg.training.losses import make_loss
from sparseg.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from sparseg.training.sampling import CropDataset
from sparseg.training.state import Progress, load_state, save_state
from sparseg.training.validate import validate

logger = logging.getLogger("sparseg")
MAX_BAD_STEPS = 20


class Monitor(Protocol):
    """What a caller may watch; the command line draws its progress bar through it."""

    def on_step(
        self, step: int, loss: float, crops_per_second: float, share_done: float, data_wait: float
    ) -> None:
        """After every optimiser step; `data_wait` is the share of its time spent waiting for crops."""

    def on_validation(self, step: int, dice: dict[str, float], mean: float) -> None:
        """After every validation."""


class Stop:
    """Turns the first SIGINT or SIGTERM into "finish the step and save"; the second acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> Stop:
        self._old = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.signal = number
        signal.signal(number, self._old[signal.Signals(number)])


class Run:
    """One training run: network, optimiser, data and folder.

    Args:
        dataset: Names, labels and regions.
        data: Prepared cases.
        config: Settings.
        folder: Run folder; holds best/, last/, state.pt, log.jsonl, progress.png.
        monitor: Watches the run.
    """

    def __init__(
        self, dataset: Dataset, data: TrainingData, config: TrainConfig, folder: Path, monitor: Monitor
    ) -> None:
        self.dataset, self.data, self.config, self.folder, self.monitor = (
            dataset,
            data,
            config,
            folder,
            monitor,
        )
        precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[config.precision]
        self.accelerator = Accelerator(mixed_precision=precision)
        torch.manual_seed(config.seed)
        net = make_network(dataset, config)
        self.model_config = net.config
        optimizer = make_optimizer(net, config.optimizer, net.config.depth, net.config.pruning_stages)
        self.net, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.loss = make_loss(regions=bool(dataset.regions))
        self.progress = Progress()

    @property
    def plain_net(self) -> SparseUNETR:
        """The network without wrappers for several processes."""
        net: SparseUNETR = self.accelerator.unwrap_model(self.net)
        return net

    def resume(self) -> None:
        """Go back to the stored state."""
        self.progress, state = load_state(self.folder)
        load_strict(self.plain_net, state["model"], where=self.folder / "state.pt")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        log.truncate(self.folder, self.progress.step)

    def train(self) -> int | None:
        """Train to the end of the schedule or the time limit, or until a signal.

        Returns:
            The signal that stopped it, or None.

        Raises:
            NumericsError: the loss stayed non-finite for `MAX_BAD_STEPS` steps in a row.
        """
        started = time.monotonic() - self.progress.minutes * 60
        bad_steps, first_step = 0, self.progress.step
        with Stop() as stop:
            batches = self._batches()
            while stop.signal is None and self._share_done() < 1:
                begun = time.monotonic()
                image, label = next(batches)
                waited = time.monotonic() - begun
                loss = self.step(image, label)
                bad_steps = 0 if math.isfinite(loss) else bad_steps + 1
                if bad_steps >= MAX_BAD_STEPS:
                    raise NumericsError(
                        f"the loss must be finite; it was not for {bad_steps} steps in a row",
                        remedy="lower optimizer.lr or train in fp32; the last good state is kept",
                        where=self.folder,
                    )
                self._advance(minutes=(time.monotonic() - started) / 60)
                self._report(loss, time.monotonic() - begun, waited)
                if self.progress.step % self.config.validate_every == 0 and self._share_done() < 1:
                    self.checkpoint()
            if self.progress.step > first_step:  # a finished run that is resumed has nothing new to store
                self.checkpoint()
        return stop.signal

    def step(self, image: Tensor, label: Tensor) -> float:
        """One optimiser step on a batch; a non-finite loss or gradient changes nothing."""
        set_learning_rate(
            self.optimizer, learning_rate(self.config.optimizer, self.progress.step, self._share_done())
        )
        device = self.accelerator.device
        with self.accelerator.autocast():
            loss = self.loss(self.net(image.to(device)), label.to(device))
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.net.parameters(), self.config.optimizer.clip_norm)
        # clip_grad_norm_ spreads one NaN over all gradients, so a step on it would lose every weight.
        if bool(torch.isfinite(loss)) and (self.config.precision == "fp16" or bool(torch.isfinite(norm))):
            self.optimizer.step()
            return float(loss.detach())
        logger.warning("step %d skipped: loss or gradient is not finite", self.progress.step)
        return math.nan

    def checkpoint(self) -> None:
        """Validate, keep the best model, and store model and state of this step."""
        names = list(self.dataset.regions) or [
            self.dataset.labels[i] for i in sorted(self.dataset.labels) if i
        ]
        values = validate(
            self.plain_net,
            self.data.validation,
            regions=self.dataset.regions,
            overlap=self.config.overlap,
            pad_value=self.data.preprocess.background_value,
            device=self.accelerator.device,
        )
        mean = float(np.nanmean(values)) if not np.isnan(values).all() else 0.0
        if self.accelerator.is_main_process:
            self._store(dict(zip(names, values, strict=True)), mean)
        self.accelerator.wait_for_everyone()

    def _store(self, dice: dict[str, float], mean: float) -> None:
        step = self.progress.step
        is_best = self.progress.best_dice is None or mean > self.progress.best_dice
        if is_best:
            self.progress = self.progress.model_copy(update={"best_dice": mean, "best_step": step})
        log.append(self.folder, {"kind": "validation", "step": step, "dice": dice, "mean_dice": mean})
        card, net = self._card(mean), self.plain_net
        dtype = getattr(torch, self.config.weights_dtype)
        for name in ("last", "best") if is_best else ("last",):
            save_model(self.folder / name, net, card, dtype=dtype)
        scaler = self.accelerator.scaler
        save_state(
            self.folder,
            self.progress,
            net.state_dict(),
            self.optimizer.state_dict(),
            None if scaler is None else scaler.state_dict(),
        )
        log.draw(self.folder)
        self.monitor.on_validation(step, dice, mean)

    def _card(self, mean: float) -> ModelCard:
        return ModelCard(
            model=self.model_config,
            preprocess=self.data.preprocess,
            channels=self.dataset.channels,
            labels=self.dataset.labels,
            regions=self.dataset.regions,
            overlap=self.config.overlap,
            provenance=Provenance(
                dataset=self.dataset.name,
                num_training_cases=len(self.data.training),
                steps=self.progress.step,
                seed=self.config.seed,
                minutes=round(self.progress.minutes, 2),
                validation_dice=mean,
                note=self.config.provenance,
                versions=_versions(),
            ),
        )

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        crops = CropDataset(
            self.data.training,
            self.model_config.roi_size,
            make_augmentation(self.config.augment, self.model_config.roi_size),
            positive_share=self.config.positive_share,
            pad_value=self.data.preprocess.background_value,
            seed=self.config.seed,
        )
        loader = DataLoader(
            crops,
            batch_sampler=_step_numbers(self.progress.step, self.config, self.accelerator),
            num_workers=self.config.num_workers,
            # A generator of its own: the loader draws a seed, and a resumed run would draw one more of ours.
            generator=torch.Generator(),
        )
        for image, label in loader:
            if self.dataset.regions:
                masks = [region_masks(one[0].numpy(), self.dataset.regions) for one in label]
                yield image, torch.from_numpy(np.stack(masks)).float()
            else:
                yield image, label

    def _advance(self, minutes: float) -> None:
        self.progress = self.progress.model_copy(update={"step": self.progress.step + 1, "minutes": minutes})

    def _share_done(self) -> float:
        share = self.progress.step / self.config.max_steps
        limit = self.config.max_minutes
        return min(1.0, share if limit is None else max(share, self.progress.minutes / limit))

    def _report(self, loss: float, seconds: float, waited: float) -> None:
        if not self.accelerator.is_main_process:
            return
        crops = self.config.batch_size * self.accelerator.num_processes
        row: dict[str, Any] = {
            "kind": "train",
            "step": self.progress.step,
            "loss": loss,
            "lr": self.optimizer.param_groups[-1]["lr"],
            "seconds": round(seconds, 4),
            "data_wait_share": round(waited / seconds, 4),
        }
        log.append(self.folder, row)
        self.monitor.on_step(self.progress.step, loss, crops / seconds, self._share_done(), waited / seconds)


def make_network(dataset: Dataset, config: TrainConfig) -> SparseUNETR:
    """The preset with the run's overrides, channels and outputs following the dataset.

    Raises:
        ConfigError: an override that the dataset decides, or an unknown one.
    """
    for name, value in (("in_channels", len(dataset.channels)), ("num_classes", dataset.num_classes)):
        if config.model.get(name, value) != value:
            raise ConfigError(
                f"the dataset decides model.{name} ({value})",
                received=config.model[name],
                remedy="remove it from the configuration",
                where=f"model.{name}",
            )
    sizes = {"in_channels": len(dataset.channels), "num_classes": dataset.num_classes}
    return build_segmenter(config.preset, **{**config.model, **sizes})


def _step_numbers(first_step: int, config: TrainConfig, accelerator: Accelerator) -> Iterator[list[int]]:
    """Crop numbers of each batch of this process: no crop twice, the same after a resumption."""
    step, world, rank = first_step, accelerator.num_processes, accelerator.process_index
    while True:
        start = (step * world + rank) * config.batch_size
        yield list(range(start, start + config.batch_size))
        step += 1


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("sparseg", "torch", "monai")}
