"""`sparseg train`: train a model on a dataset."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress, TaskID

    from sparseg.datasets.dataset import Dataset
    from sparseg.datasets.facts import CaseFacts
    from sparseg.planning.plan import Plan
    from sparseg.training.config import TrainConfig
    from sparseg.training.loop import Run


def train(
    dataset: Path,
    /,
    *,
    out: Path,
    preset: str | None = None,
    config: Path | None = None,
    set_: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set", negative="")] = (),
    max_steps: int | None = None,
    max_minutes: float | None = None,
    fold: int | None = None,
    splits: Path | None = None,
    cache: Path | None = None,
    seed: int | None = None,
    skip_bad: Annotated[bool, cyclopts.Parameter(negative="")] = False,
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
    max_steps
        Optimiser steps.
    max_minutes
        Wall-clock limit; the learning-rate schedule ends with it.
    fold
        Fold that validates, counted from 0.
    splits
        splits.json or nnU-Net's splits_final.json; by default the one beside the data, else new folds.
    cache
        Folder of prepared cases; by default in the user's cache folder.
    seed
        Seed of all random choices.
    skip_bad
        Leave out cases that cannot be used, by name, instead of refusing the dataset.
    resume
        Go on with the run in --out, with its settings; only max-steps and max-minutes may change.
    """
    from sparseg.cli.output import progress_bar
    from sparseg.training import start

    given = _given(preset=preset, max_steps=max_steps, max_minutes=max_minutes, fold=fold, seed=seed)
    start.require_free(out, resume=resume)
    others = {"config": config, "set": set_, "splits": splits}
    settings = _resumed(out, given, others) if resume else _settings(_load(config), set_, given, where=config)
    with progress_bar() as bar:
        watcher = _Watcher(bar)
        found, facts = _open(dataset, watcher, skip_bad)
        notes = {}
        if config is None and not resume:
            plan = _plan(found, facts, preset, set_)
            settings, notes = _settings(plan.settings, set_, given, where=None), {"plan.yaml": plan.to_yaml()}
        watcher.begin(settings.max_minutes, settings.max_steps)
        run, stopped_by = start.train(
            found,
            facts,
            out,
            settings,
            watcher,
            resume=resume,
            splits=splits,
            cache=cache,
            notes=notes,
            on_size=watcher.on_size,
            on_case=lambda name: watcher.say(f"preparing {name}"),
        )
    return _finish(run, stopped_by, f"sparseg train {dataset} --out {out} --resume")


def _finish(run: Run, stopped_by: int | None, command: str) -> int:
    """Say how far the run came, and return the exit code."""
    done, best = run.progress, run.progress.best_dice
    score = "none" if best is None else f"{best:.3f} at step {done.best_step}"
    sys.stdout.write(
        f"{done.step} steps in {done.minutes:.1f} min; best validation Dice {score}\n"
        f"model in {run.folder / 'best'}\n"
    )
    if stopped_by is None:
        return 0
    sys.stdout.write(f"stopped early; go on with: {command}\n")
    return 128 + int(stopped_by) if stopped_by in (signal.SIGINT, signal.SIGTERM) else 1


def _open(path: Path, watcher: _Watcher, skip_bad: bool) -> tuple[Dataset, list[CaseFacts]]:
    """The dataset and what its cases measure; says what it was read as."""
    from sparseg.training.data import open_dataset

    dataset, facts = open_dataset(path, skip_bad=skip_bad, on_case=watcher.on_read)
    watcher.say(dataset.describe())
    return dataset, facts


def _given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def _load(config: Path | None) -> dict[str, Any]:
    """Content of a settings file; nothing without one."""
    from sparseg.config import load_yaml

    return {} if config is None else load_yaml(config)


def _plan(
    dataset: Dataset, facts: Sequence[CaseFacts], preset: str | None, assignments: tuple[str, ...]
) -> Plan:
    """The plan for the device at hand; a preset set by hand is planned around."""
    import torch

    from sparseg.config import override
    from sparseg.planning.plan import make_plan

    device = "cuda" if torch.cuda.is_available() else "cpu"
    preset = preset or override({}, assignments).get("preset")
    return make_plan(dataset, facts, device=device, preset=preset, measure=False)


def _settings(
    values: dict[str, Any], assignments: tuple[str, ...], flags: dict[str, Any], *, where: Path | None
) -> TrainConfig:
    """Defaults, then the file or plan, then --set, then flags."""
    from sparseg.config import merge, override, parse_config
    from sparseg.models.config import SegmenterConfig
    from sparseg.models.presets import preset as find_preset
    from sparseg.training.config import TrainConfig

    settings = parse_config(TrainConfig, merge(override(values, assignments), flags), where=where or "")
    # Checked here too, where the file that holds a wrong model setting is known.
    place = f"{where}: model" if where else "model"
    parse_config(SegmenterConfig, {**find_preset(settings.preset), **settings.model}, where=place)
    return settings


def _resumed(run: Path, flags: dict[str, Any], others: dict[str, Any]) -> TrainConfig:
    """The settings the run was started with, and a new limit."""
    from sparseg.config import parse_config
    from sparseg.errors import ConfigError
    from sparseg.training.config import TrainConfig
    from sparseg.training.start import stored_config

    fixed = sorted(set(flags) - {"max_steps", "max_minutes"})
    assignments = others.pop("set")
    given = [*fixed, *(name for name, value in others.items() if value), *(f"set {a}" for a in assignments)]
    if given:
        raise ConfigError(
            "a resumed run keeps its settings; only --max-steps and --max-minutes may change",
            received=", ".join(f"--{name}" for name in given),
            remedy="leave these out, or start a new run",
        )
    return parse_config(TrainConfig, {**stored_config(run).model_dump(), **flags})


class _Watcher:
    """Draws the progress bar; one plain line every 30 s where there is no terminal."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.plain = bar.disable
        self.reading: TaskID | None = None
        self.last_line = time.monotonic()

    def on_read(self, name: str) -> None:
        """Show which case was read."""
        if self.reading is None:
            self.reading = self.bar.add_task("reading", total=None)
        self.bar.update(self.reading, advance=1, description=f"reading {name}")

    def begin(self, max_minutes: float | None, max_steps: int) -> None:
        """Show the bar."""
        if self.reading is not None:
            self.bar.remove_task(self.reading)
        self.task = self.bar.add_task("training", total=max_steps)
        self.limit = f", at most {max_minutes:g} min" if max_minutes else ""

    def on_size(self, num_bytes: int, num_cases: int, folder: Path) -> None:
        """Announce what the cache will take, before it is written."""
        if num_cases:
            self.say(f"cache: {num_cases} cases, at most {num_bytes / 1e6:.0f} MB, in {folder}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.plain:
            sys.stderr.write(f"{text}\n")
        else:
            self.bar.console.print(text)

    def on_step(
        self, step: int, loss: float, crops_per_second: float, share_done: float, data_wait: float
    ) -> None:
        """Move the bar."""
        share = f"{100 * share_done:.0f} % of the schedule{self.limit}"
        text = f"loss {loss:.3f}, {crops_per_second:.2f} crops/s, data wait {100 * data_wait:.0f} %, {share}"
        self.bar.update(self.task, completed=step, description=text)
        if self.plain and time.monotonic() - self.last_line > 30:
            self.last_line = time.monotonic()
            self.say(f"step {step}: {text}")

    def on_validation(self, step: int, dice: dict[str, float], mean: float) -> None:
        """Print the validation Dice."""
        worst = ", ".join(f"{name} {value:.2f}" for name, value in dice.items())
        self.say(f"step {step}: validation Dice {mean:.3f} ({worst})")
