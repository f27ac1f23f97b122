"""The training loop: read top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sparseg.checkpoints.folder import load_strict, save_model
from sparseg.checkpoints.init import load_encoder_init
from sparseg.checkpoints.verify import write_stored_case
from sparseg.datasets.dataset import Dataset
from sparseg.errors import NumericsError
from sparseg.models.network import Network
from sparseg.training import log
from sparseg.training.batches import Batch, make_batches
from sparseg.training.card import make_card
from sparseg.training.config import TrainConfig
from sparseg.training.data import TrainingData
from sparseg.training.faults import explain_faults, save_bad_batch
from sparseg.training.monitor import Monitor, StepInfo, memory_in_use
from sparseg.training.network import average_of, compile_parts, make_network, use_deterministic_algorithms
from sparseg.training.objective import Objective
from sparseg.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from sparseg.training.ranks import (
    largest_over_ranks,
    make_accelerator,
    mean_over_ranks,
    of_main_rank,
    seed_step,
    started_as_one_of_several,
    wait_for_all,
)
from sparseg.training.report import Reporter
from sparseg.training.selection_stats import merge_stats
from sparseg.training.sharding import (
    is_sharded,
    load_weights,
    require_shardable,
    shard,
    share_optimizer_state,
    whole,
    whole_network,
)
from sparseg.training.state import Progress, State, load_state, save_state
from sparseg.training.stopping import Reason, SignalWatch, is_stale
from sparseg.training.teacher import find_teacher, take_over
from sparseg.training.validate import validate

logger = logging.getLogger("sparseg")
SELECTION_EVERY = 10  # steps between statistics of the token selection


class Run:
    """One training run: network, optimiser, data and folder.

    Args:
        dataset: Names, labels and regions.
        data: Prepared cases.
        config: Settings.
        folder: Run folder; holds best/, last/, state/, log.jsonl, progress.png; with a teacher/ in it the
            network starts from the teacher's weights.
        monitor: Watches the run.
        init: Pre-training, model or foreign checkpoint whose encoder the network starts from.
    """

    def __init__(
        self,
        dataset: Dataset,
        data: TrainingData,
        config: TrainConfig,
        folder: Path,
        monitor: Monitor,
        *,
        init: Path | None = None,
    ) -> None:
        self.dataset, self.data, self.config, self.folder, self.monitor = (
            dataset,
            data,
            config,
            folder,
            monitor,
        )
        require_shardable(config)
        if config.deterministic:
            use_deterministic_algorithms()
        self.accelerator = make_accelerator(config.precision)
        torch.manual_seed(config.seed)
        net = make_network(dataset, config)
        self.model_config = net.config
        self.init_report = None if init is None else load_encoder_init(net, init)
        teacher = find_teacher(folder, config.distill)
        if teacher is not None:
            take_over(net, teacher)
        net.set_activation_checkpointing(config.activation_checkpointing)
        if config.channels_last:
            net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.net, self.optimizer = self._prepare(net)
        self.ema = average_of(self.plain_net, config.ema_decay)
        # In place, so that names of weights stay what they are; the average is never compiled.
        compile_parts(self.plain_net, config.compile)
        self.objective = Objective(net.config, config, dataset, data.training, teacher)
        self.selection: list[dict[str, float]] = []  # statistics of this step's batches
        self.progress = Progress()
        self.is_cut_short = False  # resumed with a schedule that ends where it stopped, or before
        self.reporter: Reporter | None = None

    def _prepare(self, net: Network) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Network and optimiser on the device, wrapped or shared out where there are several processes."""
        model, config = net.config, self.config
        # One process has nobody to share with, and goes on with such a run as with any other.
        sharded = config.strategy == "fsdp" and self.accelerator.num_processes > 1
        if sharded:
            shard(net, self.accelerator.device, self.accelerator.num_processes)
        optimizer = make_optimizer(net, config.optimizer, model.depth, model.pruning_stages)
        if sharded:
            return net, self.accelerator.prepare(optimizer)
        prepared: tuple[nn.Module, torch.optim.Optimizer] = self.accelerator.prepare(net, optimizer)
        return prepared

    @property
    def plain_net(self) -> Network:
        """The network without wrappers for several processes."""
        net: Network = self.accelerator.unwrap_model(self.net)
        return net

    @property
    def best_weights(self) -> Network:
        """The network that is validated and kept: the average of the weights, if there is one."""
        if self.ema is None:
            # Validation is each process's own affair: with shares of the weights they would wait for others.
            is_shared = is_sharded(self.plain_net)
            return whole_network(self.plain_net, self.accelerator.device) if is_shared else self.plain_net
        return cast(Network, self.ema.module)

    def resume(self) -> None:
        """Go back to the newest whole state."""
        state = load_state(self.folder)
        self.progress = state.progress
        if is_sharded(self.plain_net):
            load_strict(make_network(self.dataset, self.config), state.model, where=self.folder)
            load_weights(self.plain_net, state.model)
            self.optimizer.load_state_dict(share_optimizer_state(self.optimizer, state.optimizer))
        else:
            load_strict(self.plain_net, state.model, where=self.folder)
            self.optimizer.load_state_dict(state.optimizer)
        if self.ema is not None and state.ema is not None:
            self.ema.load_state_dict(state.ema)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        # The schedule may have been made longer or shorter meanwhile.
        self.progress = self.progress.within(self._share_done())
        self.is_cut_short = self.progress.finished and not state.progress.finished
        if self.accelerator.is_main_process:
            log.truncate(self.folder, self.progress.step)

    def train(self, *, until: int | None = None) -> tuple[Reason, int | None]:
        """Train to the end of the schedule or the time limit, a step, a signal, or the end of improvement.

        Args:
            until: Stop when this many steps are done; the schedule stays that of the whole run.

        Returns:
            Why it stopped, and the number of the signal if one came.

        Raises:
            NumericsError: the loss stayed non-finite for `max_bad_steps` steps in a row.
            ResourceError: out of memory, or a process that was killed.
        """
        started, first_step = time.monotonic() - self.progress.minutes * 60, self.progress.step
        self.reporter = self._open_reporter()
        try:
            with (
                SignalWatch(second_acts=not started_as_one_of_several()) as watch,
                explain_faults(self.folder),
            ):
                reason = self._steps(started, watch, until)
                if self.progress.step > first_step and reason in (Reason.SIGNAL, Reason.UNTIL):
                    self._store_state()
                if reason is not Reason.SIGNAL:  # who stops a run does not want to wait
                    self._store_test_cases()
        finally:
            if self.reporter is not None:
                self.reporter.close()
        return reason, watch.received

    def _steps(self, started: float, watch: SignalWatch, until: int | None) -> Reason:
        batches, bad_steps = self._batches(), 0
        if self.is_cut_short:
            self._end_here()
        while not self.progress.finished:
            if received := largest_over_ranks(self.accelerator, watch.received or 0):
                watch.received = received  # it may have come to another process only
                return Reason.SIGNAL
            if until is not None and self.progress.step >= until:
                return Reason.UNTIL
            begun = time.monotonic()
            taken = [next(batches) for _ in range(self.config.accumulate)]
            waited = time.monotonic() - begun
            loss = self.step(taken)
            bad_steps = 0 if math.isfinite(loss) else bad_steps + 1
            self._require_finite(bad_steps, taken)
            self._advance(started, skipped=not math.isfinite(loss))
            self._report(loss, time.monotonic() - begun, waited)
            self._checkpoint()
        return Reason.DONE if self.progress.stale_share is None else Reason.PATIENCE

    def step(self, batches: list[Batch]) -> float:
        """One optimiser step over one or more batches; returns the mean loss over all processes.

        A non-finite loss or gradient, in whichever process, changes nothing anywhere.
        """
        seed_step(self.config.seed, self.progress.step, self.accelerator.process_index)
        rate = learning_rate(self.config.optimizer, self.progress.step, self._share_done())
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.accelerator.device)
        for number, (image, target) in enumerate(batches, start=1):
            # Gradients are exchanged once, with the last of the batches.
            with self.accelerator.no_sync(self.net) if number < len(batches) else nullcontext():
                loss = self._loss(image, target) / len(batches)
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.net.parameters(), self.config.optimizer.clip_norm)
        mean = mean_over_ranks(self.accelerator, total)
        # clip_grad_norm_ spreads one NaN over all gradients, so a step on it would lose every weight. Loss
        # scalers leave such a step out.
        if math.isfinite(mean) and (self.accelerator.scaler is not None or bool(torch.isfinite(norm))):
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update_parameters(self.plain_net)
            return mean
        logger.warning("step %d skipped: loss or gradient is not finite", self.progress.step)
        return math.nan

    def _loss(self, image: Tensor, target: Tensor) -> Tensor:
        device = self.accelerator.device
        image = image.to(device, non_blocking=True)
        if self.config.channels_last:
            image = image.to(memory_format=torch.channels_last_3d)
        with self.accelerator.autocast():
            loss, stats = self.objective(
                self.net,
                image,
                target.to(device, non_blocking=True),
                self._share_done(),
                step=self.progress.step,
                with_stats=self.progress.step % SELECTION_EVERY == 0,
            )
        self.selection += [stats] if stats else []
        return loss

    def _checkpoint(self) -> None:
        """Validate and keep models, and store the state, when it is time."""
        step, done = self.progress.step, self.progress.finished
        if done or step % self.config.validate_every == 0:
            self._validate()
            if not done and is_stale(self.progress.validations_since_best, self.config.patience):
                ended = {"finished": True, "stale_share": self._share_done()}
                self.progress = self.progress.model_copy(update=ended)
            self._store_state()
        elif self.config.checkpoint_every and step % self.config.checkpoint_every == 0:
            self._store_state()

    def _end_here(self) -> None:
        """Store as finished what was not at its end when it stopped; it may lack only a validation."""
        if self.progress.step % self.config.validate_every:
            self._validate()
        self._store_state()

    def _validate(self) -> None:
        net = self.best_weights
        values = validate(
            net,
            self.data.validation,
            regions=self.dataset.regions,
            overlap=self.config.overlap,
            pad_value=self.data.preprocess.background_value,
            device=self.accelerator.device,
        )
        mean = float(np.nanmean(values)) if not np.isnan(values).all() else 0.0
        best = self.progress.best_dice
        is_best = best is None or mean > best
        changes = (
            {"best_dice": mean, "best_step": self.progress.step, "validations_since_best": 0}
            if is_best
            else {"validations_since_best": self.progress.validations_since_best + 1}
        )
        self.progress = self.progress.model_copy(update=changes)
        if self.accelerator.is_main_process:
            self._keep(net, dict(zip(self._output_names(), values, strict=True)), mean, is_best=is_best)

    def _keep(self, net: Network, dice: dict[str, float], mean: float, *, is_best: bool) -> None:
        card = make_card(self.dataset, self.data, self.config, self.model_config, self.progress, mean)
        dtype = getattr(torch, self.config.weights_dtype)
        for name in ("last", "best") if is_best else ("last",):
            save_model(self.folder / name, net, card, dtype=dtype)
        if self.reporter is not None:
            best, best_step = self.progress.best_dice or 0.0, self.progress.best_step
            self.reporter.validation(self.progress.step, dice, mean, best=best, best_step=best_step)

    def _store_state(self) -> None:
        scaler, is_main = self.accelerator.scaler, self.accelerator.is_main_process
        model = whole(self.plain_net.state_dict(), keep=is_main)
        optimizer = whole(self.optimizer.state_dict(), keep=is_main)
        if is_main:
            state = State(
                self.progress,
                model,
                optimizer,
                None if scaler is None else scaler.state_dict(),
                None if self.ema is None else self.ema.state_dict(),
            )
            save_state(self.folder, state, keep=self.config.keep_states)
        wait_for_all()

    def _store_test_cases(self) -> None:
        """Give the models kept what `sparseg model verify` compares with."""
        for name in ("last", "best"):
            if self.accelerator.is_main_process and (self.folder / name).is_dir():
                write_stored_case(self.folder / name)

    def _batches(self) -> Iterator[Batch]:
        return make_batches(
            self.dataset,
            self.data,
            self.config,
            self.model_config.roi_size,
            first_crop=self.progress.crops,
            world=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
        )

    def _open_reporter(self) -> Reporter | None:
        """Only the main process reports."""
        if not self.accelerator.is_main_process:
            return None
        resumed_from = self.progress.step or None
        return Reporter(self.folder, self.monitor, self.config.trackers, resumed_from=resumed_from)

    def _advance(self, started: float, *, skipped: bool) -> None:
        minutes = of_main_rank(self.accelerator, (time.monotonic() - started) / 60)
        crops = self.config.batch_size * self.config.accumulate * self.accelerator.num_processes
        self.progress = self.progress.model_copy(
            update={
                "step": self.progress.step + 1,
                "crops": self.progress.crops + crops,
                "minutes": minutes,
                "skipped": self.progress.skipped + skipped,
            }
        )
        self.progress = self.progress.model_copy(update={"finished": self._share_done() >= 1})

    def _share_done(self) -> float:
        share = self.progress.step / self.config.max_steps
        limit = self.config.max_minutes
        return min(1.0, share if limit is None else max(share, self.progress.minutes / limit))

    def _require_finite(self, bad_steps: int, batches: list[Batch]) -> None:
        if not bad_steps:
            return
        save_bad_batch(self.folder, self.progress.step, batches, rank=self.accelerator.process_index)
        if bad_steps >= self.config.max_bad_steps:
            raise NumericsError(
                f"the loss must be finite; it was not for {bad_steps} steps in a row",
                remedy="look at the crops in bad_batch_*.pt, lower optimizer.lr or train in fp32; the last "
                "good state is kept",
                where=self.folder,
                code="loss-not-finite",
            )

    def _report(self, loss: float, seconds: float, waited: float) -> None:
        if self.reporter is None:
            return
        crops = self.config.batch_size * self.config.accumulate * self.accelerator.num_processes
        info = StepInfo(
            step=self.progress.step,
            max_steps=self.config.max_steps,
            loss=loss,
            lr=self.optimizer.param_groups[-1]["lr"],
            seconds=seconds,
            crops_per_second=crops / seconds,
            data_wait=waited / seconds,
            share_done=self._share_done(),
            minutes=self.progress.minutes,
            tokens=tuple(self.plain_net.token_counts()),
            memory_bytes=memory_in_use(self.accelerator.device),
            skipped=self.progress.skipped,
        )
        self.reporter.step(info, merge_stats(self.selection))
        self.selection = []

    def _output_names(self) -> list[str]:
        names = self.dataset.labels
        return list(self.dataset.regions) or [names[i] for i in sorted(names) if i]
