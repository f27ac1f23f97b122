"""`sparseg train`: train a model on a dataset folder."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

if TYPE_CHECKING:
    from rich.progress import Progress

    from sparseg.training.config import TrainConfig


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
    seed: int | None = None,
    resume: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Train a segmentation model.

    The run folder holds best/ and last/ (model folders), config.yaml, log.jsonl, progress.png and state.pt.
    Ctrl-C finishes the step, saves and stops; --resume goes on.

    Parameters
    ----------
    dataset
        Folder with dataset.json (Medical Segmentation Decathlon layout).
    out
        Run folder to write.
    preset
        Named model, e.g. vit_tiny_p8, vit_small_p8, vit_base_p8, btcv, brats.
    config
        YAML file with settings.
    set_
        One setting, e.g. --set optimizer.lr=5e-4 or --set model.keep_ratio=0.25; may be repeated.
    max_steps
        Optimiser steps.
    max_minutes
        Wall-clock limit; the learning-rate schedule ends with it.
    seed
        Seed of all random choices.
    resume
        Go on with the run in --out, with the settings it was started with (max-steps and max-minutes may be
        changed).
    """
    from sparseg.cli.output import progress_bar
    from sparseg.training.start import train as run_training

    flags = {"preset": preset, "max_steps": max_steps, "max_minutes": max_minutes, "seed": seed}
    settings = _settings(
        config, set_, {k: v for k, v in flags.items() if v is not None}, out if resume else None
    )
    with progress_bar() as bar:
        watcher = _Watcher(bar, settings.max_minutes, settings.max_steps)
        run, stopped_by = run_training(
            dataset,
            out,
            settings,
            watcher,
            resume=resume,
            on_case=lambda name: watcher.say(f"preparing {name}"),
        )
    done, best = run.progress, run.progress.best_dice
    score = "none" if best is None else f"{best:.3f} at step {done.best_step}"
    sys.stdout.write(
        f"{done.step} steps in {done.minutes:.1f} min; best validation Dice {score}\n"
        f"model in {out / 'best'}\n"
    )
    if stopped_by is None:
        return 0
    sys.stdout.write(f"stopped early; go on with: sparseg train {dataset} --out {out} --resume\n")
    return 128 + int(stopped_by) if stopped_by in (signal.SIGINT, signal.SIGTERM) else 1


def _settings(
    file: Path | None, assignments: tuple[str, ...], flags: dict[str, Any], resumed: Path | None
) -> TrainConfig:
    """Defaults, then the file, then --set, then flags.

    A resumed run's own settings instead of defaults and file.
    """
    from sparseg.config import load_yaml, merge, override, parse_config
    from sparseg.errors import ConfigError
    from sparseg.models.config import SegmenterConfig
    from sparseg.models.presets import preset as find_preset
    from sparseg.training.config import TrainConfig
    from sparseg.training.start import stored_config

    if resumed is None:
        values = load_yaml(file) if file is not None else {}
        settings = parse_config(TrainConfig, merge(override(values, assignments), flags), where=file or "")
        # Checked here too, where the file that holds a wrong model setting is known.
        where = f"{file}: model" if file else "model"
        parse_config(SegmenterConfig, {**find_preset(settings.preset), **settings.model}, where=where)
        return settings
    fixed = sorted(set(flags) - {"max_steps", "max_minutes"})
    given = [*fixed, *(["config"] if file else []), *(f"set {text}" for text in assignments)]
    if given:
        raise ConfigError(
            "a resumed run keeps its settings; only --max-steps and --max-minutes may change",
            received=", ".join(f"--{name}" for name in given),
            remedy="leave these out, or start a new run",
        )
    return parse_config(TrainConfig, {**stored_config(resumed).model_dump(), **flags})


class _Watcher:
    """Draws the progress bar; one plain line every 30 s where there is no terminal."""

    def __init__(self, bar: Progress, max_minutes: float | None, max_steps: int) -> None:
        self.bar = bar
        self.task = bar.add_task("training", total=max_steps)
        self.plain = bar.disable
        self.limit = f", at most {max_minutes:g} min" if max_minutes else ""
        self.last_line = time.monotonic()

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.plain:
            sys.stderr.write(f"{text}\n")
        else:
            self.bar.console.print(text)

    def on_step(self, step: int, loss: float, crops_per_second: float, share_done: float) -> None:
        """Move the bar."""
        share = f"{100 * share_done:.0f} % of the schedule{self.limit}"
        text = f"loss {loss:.3f}, {crops_per_second:.2f} crops/s, {share}"
        self.bar.update(self.task, completed=step, description=text)
        if self.plain and time.monotonic() - self.last_line > 30:
            self.last_line = time.monotonic()
            self.say(f"step {step}: {text}")

    def on_validation(self, step: int, dice: dict[str, float], mean: float) -> None:
        """Print the validation Dice."""
        worst = ", ".join(f"{name} {value:.2f}" for name, value in dice.items())
        self.say(f"step {step}: validation Dice {mean:.3f} ({worst})")
