"""`sparseg train`: train a model on a dataset."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import cyclopts

from sparseg.cli.settings import combine_settings, given_flags, load_settings, plan_for_device

if TYPE_CHECKING:
    from sparseg.cli.live import Watcher
    from sparseg.datasets.dataset import Dataset
    from sparseg.datasets.facts import CaseFacts
    from sparseg.training.config import TrainConfig
    from sparseg.training.loop import Run
    from sparseg.training.stopping import Reason


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Length:
    """How long a run goes on.

    Parameters
    ----------
    max_steps
        Optimiser steps of the schedule.
    max_minutes
        Wall-clock limit; the learning-rate schedule ends with it.
    until
        Stop after this many steps and leave the rest for --resume; the schedule stays that of the whole run.
    extend
        With --resume: make the schedule this many steps longer than it was.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    until: int | None = None
    extend: int | None = None


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Data:
    """Which cases train and validate, and where prepared ones are kept.

    Parameters
    ----------
    fold
        Fold that validates, counted from 0.
    splits
        splits.json or nnU-Net's splits_final.json; by default the one beside the data, else new folds.
    cache
        Folder of prepared cases; by default in the user's cache folder.
    skip_bad
        Leave out cases that cannot be used, by name, instead of refusing the dataset.
    """

    fold: int | None = None
    splits: Path | None = None
    cache: Path | None = None
    skip_bad: Annotated[bool, cyclopts.Parameter(negative="")] = False


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Origin:
    """What a run starts from.

    Parameters
    ----------
    init
        Pre-training run, model folder or foreign checkpoint whose encoder the network starts from.
    seed
        Seed of all random choices.
    deterministic
        Refuse operations whose result may differ between two runs (matters on a GPU; a CPU repeats anyway).
    """

    init: Path | None = None
    seed: int | None = None
    deterministic: Annotated[bool, cyclopts.Parameter(negative="")] = False


def train(
    dataset: Path,
    /,
    *,
    out: Path,
    preset: str | None = None,
    config: Path | None = None,
    set_: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set", negative="")] = (),
    length: Length | None = None,
    data: Data | None = None,
    origin: Origin | None = None,
    resume: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Train a segmentation model.

    Without --config the settings are those that `sparseg plan` finds. The run folder holds best/ and last/
    (model folders), settings, splits, log and picture. Ctrl-C saves and stops; --resume goes on.

    Parameters
    ----------
    dataset
        Folder of cases, or a list of them (JSON, CSV), in any layout of docs/how-to/datasets.md.
    out
        Run folder to write.
    preset
        Named model, e.g. vit_tiny_p8, vit_small_p8, vit_base_p8, btcv, brats.
    config
        YAML file with settings, such as plan.yaml.
    set_
        One setting, e.g. --set optimizer.lr=5e-4 or --set model.keep_ratio=0.25; may be repeated.
    resume
        Go on with the run in --out, with its settings; only its length may change.
    """
    from sparseg.allocator import keep_freed_memory
    from sparseg.cli.live import Watcher
    from sparseg.cli.output import progress_bar
    from sparseg.training import ranks, start

    keep_freed_memory()
    length, data, origin = length or Length(), data or Data(), origin or Origin()
    with ranks.joined(), progress_bar(visible=ranks.rank() == 0) as bar:
        watcher = Watcher(bar, muted=ranks.rank() > 0)
        order = ranks.of_main_process(
            lambda: _order(
                dataset, out, watcher, preset=preset, config=config, set_=set_,
                length=length, data=data, origin=origin, resume=resume,
            )
        )  # fmt: skip
        watcher.begin(order.settings.max_minutes, order.settings.max_steps)
        run, reason, received = start.train(
            order.dataset,
            order.facts,
            out,
            order.settings,
            watcher,
            resume=order.resume,
            until=length.until,
            init=origin.init,
            splits=data.splits,
            cache=data.cache,
            notes=order.notes,
            on_size=watcher.on_size,
            on_case=watcher.on_prepared,
        )
    return finish(run, reason, received, resumption(dataset, out, data.cache, skip_bad=data.skip_bad))


def resumption(
    dataset: Path, out: Path, cache: Path | None = None, *, skip_bad: bool = False, command: str = "train"
) -> str:
    """Return the command line that goes on with a run."""
    import shlex

    from sparseg.training import ranks

    words = ["sparseg", command, str(dataset), "--out", str(out), "--resume"]
    words += ["--cache", str(cache)] if cache else []
    words += ["--skip-bad"] if skip_bad else []
    return ranks.launch_command() + shlex.join(words)


def finish(run: Run, reason: Reason, received: int | None, command: str) -> int:
    """Say how far the run came, and return the exit code: 128 + signal for Ctrl-C and SIGTERM, else 0."""
    from sparseg.training.stopping import Reason

    done, best = run.progress, run.progress.best_dice
    if run.accelerator.is_main_process:
        score = "none" if best is None else f"{best:.3f} at step {done.best_step}"
        sys.stdout.write(f"{done.step} steps in {done.minutes:.1f} min; best validation Dice {score}\n")
        if best is not None:
            sys.stdout.write(f"model in {run.folder / 'best'}\n")
        if reason is Reason.PATIENCE:
            sys.stdout.write(f"ended early: {reason.value}; for more steps: {command} --extend STEPS\n")
        elif not done.finished:
            sys.stdout.write(f"stopped early: {reason.value}; go on with: {command}\n")
    if done.finished:
        return 0
    return 128 + received if received in (signal.SIGINT, signal.SIGTERM) else 0


class _Order(NamedTuple):
    """What all processes of a run work on."""

    dataset: Dataset
    facts: list[CaseFacts]
    settings: TrainConfig
    notes: dict[str, str]
    resume: bool


def _order(
    dataset: Path,
    out: Path,
    watcher: Watcher,
    *,
    preset: str | None,
    config: Path | None,
    set_: tuple[str, ...],
    length: Length,
    data: Data,
    origin: Origin,
    resume: bool,
) -> _Order:
    """Read the dataset and settle the settings: those stored, those given, or those planned."""
    from sparseg.errors import ConfigError
    from sparseg.training import start

    given = given_flags(
        preset=preset,
        max_steps=length.max_steps,
        max_minutes=length.max_minutes,
        fold=data.fold,
        seed=origin.seed,
        deterministic=origin.deterministic or None,
    )
    if length.extend is not None and not resume:
        raise ConfigError(
            "--extend makes the schedule of a run that is resumed longer",
            received=f"--extend {length.extend} without --resume",
            remedy="give --resume too, or --max-steps for a new run",
            where="--extend",
        )
    is_restart = start.is_restart(out)
    start.require_free(out, resume=resume or is_restart)
    if is_restart:
        settings = start.stored_config(out)
    elif resume:
        others = {"config": config, "set": set_, "splits": data.splits, "init": origin.init}
        settings = _resumed(out, given, others, length.extend)
    else:
        settings = combine_settings(load_settings(config), set_, given, where=config)
    found, facts = open_for_training(dataset, watcher, data.skip_bad)
    if resume or is_restart or config is not None:
        return _Order(found, facts, settings, {}, resume or is_restart)
    plan = plan_for_device(found, facts, preset, set_)
    settings = combine_settings(plan.settings, set_, given, where=None)
    return _Order(found, facts, settings, {"plan.yaml": plan.to_yaml()}, resume=False)


def open_for_training(path: Path, watcher: Watcher, skip_bad: bool) -> tuple[Dataset, list[CaseFacts]]:
    """The dataset and what its cases measure; says what it was read as."""
    from sparseg.training.data import open_dataset

    dataset, facts = open_dataset(path, skip_bad=skip_bad, on_case=watcher.on_read)
    watcher.say(dataset.describe())
    return dataset, facts


def _resumed(run: Path, flags: dict[str, Any], others: dict[str, Any], extend: int | None) -> TrainConfig:
    """The settings the run was started with, and a new length."""
    from sparseg.config import parse_config
    from sparseg.errors import ConfigError
    from sparseg.training.config import TrainConfig
    from sparseg.training.start import stored_config

    fixed = sorted(set(flags) - {"max_steps", "max_minutes"})
    assignments = others.pop("set")
    given = [*fixed, *(name for name, value in others.items() if value), *(f"set {a}" for a in assignments)]
    if given:
        raise ConfigError(
            "a resumed run keeps its settings; only --max-steps, --max-minutes and --extend may be given",
            received=", ".join(f"--{name}" for name in given),
            remedy="leave these out, or start a new run",
        )
    stored = stored_config(run).model_dump()
    if extend is None:
        return parse_config(TrainConfig, {**stored, **flags})
    _require_extendable(run, flags, flags.get("max_minutes", stored["max_minutes"]))
    return parse_config(TrainConfig, {**stored, **flags, "max_steps": stored["max_steps"] + extend})


def _require_extendable(run: Path, flags: dict[str, Any], max_minutes: float | None) -> None:
    """Refuse more steps where something else decides how long the run goes on.

    Raises:
        ConfigError: --max-steps is given too, or the time limit of the run is used up.
    """
    from sparseg.errors import ConfigError
    from sparseg.training.state import read_progress

    if "max_steps" in flags:
        raise ConfigError(
            "--extend and --max-steps exclude each other", received="both", remedy="leave one out"
        )
    done = read_progress(run)
    if done is not None and max_minutes is not None and done.minutes >= max_minutes:
        raise ConfigError(
            f"a run that has used up its {max_minutes:g} minutes needs more of them, not only steps",
            received=f"--extend after {done.minutes:.1f} minutes",
            remedy="give a larger --max-minutes",
            where=run,
        )
