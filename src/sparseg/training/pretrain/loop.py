"""The pre-training loop: read top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sparseg.checkpoints.folder import load_strict
from sparseg.checkpoints.pretrained import PretrainCard, save_encoder
from sparseg.errors import NumericsError
from sparseg.models.autoencoder import MaskedAutoencoder
from sparseg.preprocessing.config import PreprocessConfig
from sparseg.shapes import num_tokens
from sparseg.training import log
from sparseg.training.batches import crop_numbers
from sparseg.training.faults import explain_faults
from sparseg.training.monitor import StepInfo, memory_in_use
from sparseg.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from sparseg.training.pretrain.config import PretrainConfig, segmenter_config
from sparseg.training.pretrain.crops import ImageCrops, PreparedImage
from sparseg.training.pretrain.pictures import draw_reconstruction, reconstruct_masked
from sparseg.training.ranks import (
    largest_over_ranks,
    make_accelerator,
    mean_over_ranks,
    of_main_rank,
    seed_step,
)
from sparseg.training.state import Progress, State, load_state, save_state
from sparseg.training.stopping import Reason, SignalWatch

logger = logging.getLogger("sparseg")
_LOSS_STEPS = 100
# A crop that training will not reach: the pictures of a run show the same one.
_PICTURE_CROP = 2**62


class PretrainMonitor(Protocol):
    """What a caller may watch."""

    def on_step(self, info: StepInfo) -> None:
        """After every optimiser step."""


@dataclass(frozen=True)
class PretrainData:
    """Prepared images, and what the card says of them.

    Attributes:
        title: Of the dataset.
        channels: Names of the image channels.
        images: Prepared images.
        preprocess: How they were prepared.
    """

    title: str
    channels: tuple[str, ...]
    images: Sequence[PreparedImage]
    preprocess: PreprocessConfig


class PretrainRun:
    """One pre-training: network, optimiser, images and folder.

    Args:
        data: Prepared images.
        config: Settings.
        folder: Run folder; holds encoder.safetensors, pretrain.json, state/, log.jsonl and pictures.
        monitor: Watches the run.
    """

    def __init__(
        self, data: PretrainData, config: PretrainConfig, folder: Path, monitor: PretrainMonitor
    ) -> None:
        self.data, self.config, self.folder, self.monitor = data, config, folder, monitor
        self.accelerator = make_accelerator(config.precision)
        torch.manual_seed(config.seed)
        self.model_config = segmenter_config(config, len(data.channels))
        net = MaskedAutoencoder(self.model_config, config.autoencoder)
        optimizer = make_optimizer(net, config.optimizer, self.model_config.depth, ())
        self.net, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.progress = Progress()

    @property
    def plain_net(self) -> MaskedAutoencoder:
        """The network without wrappers for several processes."""
        net: MaskedAutoencoder = self.accelerator.unwrap_model(self.net)
        return net

    def resume(self) -> None:
        """Go back to the stored state; a schedule that was made longer goes on."""
        state = load_state(self.folder)
        load_strict(self.plain_net, state.model, where=self.folder)
        self.optimizer.load_state_dict(state.optimizer)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.progress = state.progress
        self.progress = self.progress.model_copy(update={"finished": self._share_done() >= 1})
        if self.accelerator.is_main_process:
            log.truncate(self.folder, self.progress.step)

    def train(self) -> tuple[Reason, int | None]:
        """Train to the end of the schedule or the time limit, or until a signal.

        Returns:
            Why it ended, and the signal that stopped it or None.

        Raises:
            NumericsError: the loss stayed non-finite for `max_bad_steps` steps in a row.
            ResourceError: out of device memory, or a loader process was killed.
        """
        started, first_step = time.monotonic() - self.progress.minutes * 60, self.progress.step
        with SignalWatch() as watch, explain_faults(self.folder):
            reason = self._steps(started, watch)
            if self.progress.step > first_step and reason is Reason.SIGNAL:
                self.store()
        return reason, watch.received

    def _steps(self, started: float, watch: SignalWatch) -> Reason:
        batches, bad_steps = self._batches(), 0
        while not self.progress.finished:
            if largest_over_ranks(self.accelerator, watch.received or 0):
                return Reason.SIGNAL
            begun = time.monotonic()
            image = next(batches)
            waited = time.monotonic() - begun
            loss = self.step(image)
            bad_steps = 0 if math.isfinite(loss) else bad_steps + 1
            self._require_finite(bad_steps)
            self._advance(started, skipped=not math.isfinite(loss))
            self._report(loss, time.monotonic() - begun, waited)
            if self.progress.finished or self.progress.step % self.config.store_every == 0:
                self.store()
        return Reason.DONE

    def step(self, image: Tensor) -> float:
        """One optimiser step on `[B, C, *roi]`; returns the mean loss over all processes.

        A non-finite loss or gradient, in whichever process, changes nothing anywhere.
        """
        # Masks and drop path depend on this step alone, so that a resumed run is the uninterrupted one.
        rank = self.accelerator.process_index
        seed_step(self.config.seed, self.progress.step, rank)
        before = rank * self.config.batch_size * num_tokens(self.model_config.grid)
        masks = mask_generator(self.config.seed, self.progress.step, skip=before)
        rate = learning_rate(self.config.optimizer, self.progress.step, self._share_done())
        set_learning_rate(self.optimizer, rate)
        with self.accelerator.autocast():
            loss = self.net(image.to(self.accelerator.device, non_blocking=True), masks).loss
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.net.parameters(), self.config.optimizer.clip_norm)
        mean = mean_over_ranks(self.accelerator, loss.detach())
        if math.isfinite(mean) and (self.accelerator.scaler is not None or bool(torch.isfinite(norm))):
            self.optimizer.step()
            return mean
        logger.warning("step %d skipped: loss or gradient is not finite", self.progress.step)
        return math.nan

    def store(self) -> None:
        """Store state and encoder of this step, and draw the pictures."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = State(
                self.progress,
                self.plain_net.state_dict(),
                self.optimizer.state_dict(),
                None if scaler is None else scaler.state_dict(),
            )
            save_state(self.folder, state, keep=self.config.keep_states)
            save_encoder(self.folder, self.plain_net.encoder, self.card())
            log.draw(self.folder)
            self.draw()
        self.accelerator.wait_for_everyone()

    def draw(self) -> None:
        """Draw the reconstruction of one crop, the same at every call, first channel."""
        crop = self._crops().draw(np.random.default_rng((self.config.seed, _PICTURE_CROP)))
        image = torch.from_numpy(crop).to(self.accelerator.device)
        rebuilt, hidden = reconstruct_masked(self.plain_net, image)
        share = self.config.autoencoder.mask_ratio
        title = f"step {self.progress.step}: {share:.0%} of the patches hidden"
        draw_reconstruction(
            self.folder, crop[0], hidden.cpu().numpy(), rebuilt[0].float().cpu().numpy(), title=title
        )

    def card(self) -> PretrainCard:
        """The card of the encoder as it is now."""
        rows = [row for row in log.read(self.folder) if row["kind"] == "train"][-_LOSS_STEPS:]
        losses = [row["loss"] for row in rows if row["loss"] is not None]
        return PretrainCard(
            model=self.model_config,
            autoencoder=self.config.autoencoder,
            preprocess=self.data.preprocess,
            channels=self.data.channels,
            dataset=self.data.title,
            num_cases=len(self.data.images),
            steps=self.progress.step,
            minutes=round(self.progress.minutes, 2),
            seed=self.config.seed,
            loss=float(np.mean(losses)) if losses else None,
            versions={name: version(name) for name in ("sparseg", "torch")},
        )

    def _crops(self) -> ImageCrops:
        return ImageCrops(
            self.data.images,
            self.model_config.roi_size,
            self.config.crops,
            pad_value=self.data.preprocess.background_value,
            seed=self.config.seed,
        )

    def _batches(self) -> Iterator[Tensor]:
        loader = DataLoader(
            self._crops(),
            batch_sampler=crop_numbers(
                self.progress.crops,
                self.config.batch_size,
                world=self.accelerator.num_processes,
                rank=self.accelerator.process_index,
            ),
            num_workers=self.config.num_workers,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: the loader draws a seed, and must not draw it from the step's generator.
            generator=torch.Generator(),
        )
        yield from loader

    def _advance(self, started: float, *, skipped: bool) -> None:
        minutes = of_main_rank(self.accelerator, (time.monotonic() - started) / 60)
        old = self.progress
        self.progress = old.model_copy(
            update={
                "step": old.step + 1,
                "crops": old.crops + self.config.batch_size * self.accelerator.num_processes,
                "minutes": minutes,
                "skipped": old.skipped + skipped,
            }
        )
        self.progress = self.progress.model_copy(update={"finished": self._share_done() >= 1})

    def _share_done(self) -> float:
        share = self.progress.step / self.config.max_steps
        limit = self.config.max_minutes
        return min(1.0, share if limit is None else max(share, self.progress.minutes / limit))

    def _require_finite(self, bad_steps: int) -> None:
        if bad_steps >= self.config.max_bad_steps:
            raise NumericsError(
                f"the loss must be finite; it was not for {bad_steps} steps in a row",
                remedy="lower optimizer.lr or train in fp32; the last good state is kept",
                where=self.folder,
                code="loss-not-finite",
            )

    def _report(self, loss: float, seconds: float, waited: float) -> None:
        if not self.accelerator.is_main_process:
            return
        info = StepInfo(
            step=self.progress.step,
            max_steps=self.config.max_steps,
            loss=loss,
            lr=self.optimizer.param_groups[-1]["lr"],
            seconds=seconds,
            crops_per_second=self.config.batch_size * self.accelerator.num_processes / seconds,
            data_wait=waited / seconds,
            share_done=self._share_done(),
            minutes=self.progress.minutes,
            memory_bytes=memory_in_use(self.accelerator.device),
            skipped=self.progress.skipped,
        )
        row = {
            "kind": "train",
            "step": info.step,
            "loss": loss,
            "lr": info.lr,
            "seconds": round(seconds, 4),
            "data_wait_share": round(info.data_wait, 4),
            "crops_per_second": round(info.crops_per_second, 4),
        }
        log.append(self.folder, row)
        self.monitor.on_step(info)


def mask_generator(seed: int, step: int, *, skip: int) -> torch.Generator:
    """The generator of one process's masks in one step.

    All processes share a stream and each takes its part, so that the crops of a step get the same masks
    however many processes share them.

    Args:
        seed: Of the run.
        step: Zero-based optimiser step.
        skip: Numbers that the processes before this one draw.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    torch.rand(skip, generator=generator)
    return generator
