"""`sparseg pretrain`: let an encoder learn from images without labels."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

if TYPE_CHECKING:
    from sparseg.cli.live import Watcher
    from sparseg.datasets.dataset import Dataset
    from sparseg.datasets.facts import CaseFacts
    from sparseg.training.pretrain.config import PretrainConfig
    from sparseg.training.pretrain.loop import PretrainRun


def pretrain(
    dataset: Path,
    /,
    *,
    out: Path,
    preset: str | None = None,
    config: Path | None = None,
    set_: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set", negative="")] = (),
    max_steps: int | None = None,
    max_minutes: float | None = None,
    mask_ratio: float | None = None,
    cache: Path | None = None,
    seed: int | None = None,
    skip_bad: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    resume: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Pre-train an encoder on images, with or without labels; labels are not used.

    Most patches of each crop are hidden, and the network learns to paint them in. The run folder holds the
    encoder, its card, settings, log and pictures. Go on with: sparseg train DATASET --init RUN. Ctrl-C saves
    and stops; --resume goes on.

    Parameters
    ----------
    dataset
        Dataset in any layout of docs/how-to/datasets.md, or a plain folder of image files and DICOM series.
    out
        Run folder to write.
    preset
        Named model whose encoder is trained, e.g. vit_tiny_p8, vit_small_p8, vit_base_p8.
    config
        YAML file with settings; of a plan.yaml model and preprocessing are taken.
    set_
        One setting, e.g. --set optimizer.lr=5e-4 or --set cases=training; may be repeated.
    max_steps
        Optimiser steps.
    max_minutes
        Wall-clock limit; the learning-rate schedule ends with it.
    mask_ratio
        Share of the patches that is hidden, 0.75 by default.
    cache
        Folder of prepared cases; by default in the user's cache folder.
    seed
        Seed of all random choices.
    skip_bad
        Leave out images that cannot be used, by name, instead of refusing the dataset.
    resume
        Go on with the run in --out, with its settings; only max-steps and max-minutes may change.
    """
    from sparseg.allocator import keep_freed_memory
    from sparseg.cli.live import Watcher
    from sparseg.cli.output import progress_bar
    from sparseg.cli.settings import given_flags
    from sparseg.cli.train import resumption
    from sparseg.training import ranks
    from sparseg.training.pretrain import start

    keep_freed_memory()
    given = given_flags(preset=preset, max_steps=max_steps, max_minutes=max_minutes, seed=seed)
    if mask_ratio is not None:
        given["autoencoder"] = {"mask_ratio": mask_ratio}
    with ranks.joined(), progress_bar(visible=ranks.rank() == 0) as bar:
        watcher = Watcher(bar, muted=ranks.rank() > 0)
        found, facts, settings = ranks.of_main_process(
            lambda: _order(dataset, out, watcher, config, set_, given, skip_bad=skip_bad, resume=resume)
        )
        watcher.begin(settings.max_minutes, settings.max_steps)
        run, reason, received = start.pretrain(
            found,
            facts,
            out,
            settings,
            watcher,
            resume=resume,
            cache=cache,
            on_size=watcher.on_size,
            on_case=watcher.on_prepared,
        )
    command = resumption(dataset, out, cache, skip_bad=skip_bad, command="pretrain")
    return _finish(run, reason.value, received, command)


def _order(
    dataset: Path,
    out: Path,
    watcher: Watcher,
    config: Path | None,
    assignments: tuple[str, ...],
    given: dict[str, Any],
    *,
    skip_bad: bool,
    resume: bool,
) -> tuple[Dataset, list[CaseFacts], PretrainConfig]:
    """Read the images and settle the settings: those stored, those given, or those planned."""
    from sparseg.training.pretrain.images import open_images
    from sparseg.training.start import require_free

    require_free(out, resume=resume)
    if resume:
        settings = _resumed(out, given, config, assignments)
    else:
        settings = _settings(_load(config), assignments, given, config)
    only = settings.cases == "training"
    found, facts = open_images(dataset, training_only=only, skip_bad=skip_bad, on_case=watcher.on_read)
    watcher.say(f"{len(found.training)} images of {found.layout} dataset {found.name!r}, labels not used")
    if config is None and not resume:
        planned = _planned(dataset, found, facts, given.get("preset"), assignments, watcher)
        settings = _settings(planned, assignments, given, None)
    return found, facts, settings


def _finish(run: PretrainRun, reason: str, received: int | None, command: str) -> int:
    """Say how far the run came, and return the exit code: 128 + signal for Ctrl-C and SIGTERM, else 0."""
    done = run.progress
    if run.accelerator.is_main_process:
        loss = run.card().loss
        error = "" if loss is None else f"; mean loss of the last steps {loss:.4f}"
        sys.stdout.write(f"{done.step} steps in {done.minutes:.1f} min{error}\n")
        sys.stdout.write(f"encoder in {run.folder}; go on with: sparseg train DATASET --init {run.folder}\n")
        if not done.finished:
            sys.stdout.write(f"stopped early: {reason}; go on with: {command}\n")
    if done.finished:
        return 0
    return 128 + received if received in (signal.SIGINT, signal.SIGTERM) else 0


def _load(config: Path | None) -> dict[str, Any]:
    """What a settings file says about pre-training; nothing without one."""
    from sparseg.config import load_yaml
    from sparseg.training.pretrain.config import from_training_settings

    return {} if config is None else from_training_settings(load_yaml(config), config)


def _settings(
    values: dict[str, Any], assignments: tuple[str, ...], flags: dict[str, Any], where: Path | None
) -> PretrainConfig:
    """Defaults, then the file or plan, then --set, then flags."""
    from sparseg.config import merge, override, parse_config
    from sparseg.training.pretrain.config import PretrainConfig, segmenter_config

    settings = parse_config(PretrainConfig, merge(override(values, assignments), flags), where=where or "")
    # Checked here too, where the file that holds a wrong model setting is known.
    segmenter_config(settings, settings.model.get("in_channels", 1), f"{where}: model" if where else "model")
    return settings


def _resumed(
    run: Path, flags: dict[str, Any], config: Path | None, assignments: tuple[str, ...]
) -> PretrainConfig:
    """The settings the run was started with, and a new limit."""
    from sparseg.config import parse_config
    from sparseg.errors import ConfigError
    from sparseg.training.pretrain.config import PretrainConfig
    from sparseg.training.pretrain.start import stored_config

    fixed = sorted(set(flags) - {"max_steps", "max_minutes"})
    names = ["mask-ratio" if name == "autoencoder" else name for name in fixed]
    given = [*names, *(["config"] if config else []), *(f"set {text}" for text in assignments)]
    if given:
        raise ConfigError(
            "a resumed run keeps its settings; only --max-steps and --max-minutes may change",
            received=", ".join(f"--{name}" for name in given),
            remedy="leave these out, or start a new run",
        )
    return parse_config(PretrainConfig, {**stored_config(run).model_dump(), **flags})


def _planned(
    path: Path,
    images: Dataset,
    facts: Sequence[CaseFacts],
    preset: str | None,
    assignments: tuple[str, ...],
    watcher: Watcher,
) -> dict[str, Any]:
    """The plan of a training on the same folder; what can be planned without labels where there is none."""
    values = _plan(path, preset, assignments)
    if values is None:
        watcher.say("no labels to plan with: grid and intensity after the images, model as preset")
        values = {"preprocess": _preprocess(images, facts)}
    return values


def _plan(path: Path, preset: str | None, assignments: tuple[str, ...]) -> dict[str, Any] | None:
    """Model and preprocessing as `sparseg train` would plan them for the same folder.

    None where it could not be trained on: labels that are missing or bad are no reason to refuse images.
    """
    from sparseg.cli.settings import plan_for_device
    from sparseg.datasets.read import is_dataset
    from sparseg.errors import DatasetError
    from sparseg.training.data import open_dataset
    from sparseg.training.pretrain.config import from_training_settings

    if not is_dataset(path):
        return None
    try:
        dataset, facts = open_dataset(path)
    except DatasetError:
        return None
    return from_training_settings(plan_for_device(dataset, facts, preset, assignments).settings)


def _preprocess(images: Dataset, facts: Sequence[CaseFacts]) -> dict[str, Any]:
    """Grid and intensity mapping after the images themselves."""
    from sparseg.datasets.fingerprint import make_fingerprint
    from sparseg.planning.grid import target_spacing
    from sparseg.planning.intensity import choose_intensity

    fingerprint = make_fingerprint(facts)
    # The planned CT window is that of labelled voxels; without labels the paper's is taken.
    kind = choose_intensity(images.channels, fingerprint.channels).value.kind
    return {"spacing": list(target_spacing(fingerprint).value), "intensity": {"kind": kind}}
