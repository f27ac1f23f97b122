"""`sparseg cv`: train all folds, predict every case by the model that did not see it, one table."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts

if TYPE_CHECKING:
    from sparseg.crossval.children import FoldJob, Outcome
    from sparseg.crossval.folder import CrossValidation
    from sparseg.datasets.dataset import Dataset
    from sparseg.datasets.facts import CaseFacts
    from sparseg.training.config import TrainConfig


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Settings:
    """Settings of all folds; without --config those that `sparseg plan` finds.

    Parameters
    ----------
    folds
        Number of folds that are made where the dataset brings none; default: 5.
    splits
        splits.json or nnU-Net's splits_final.json; by default the one beside the data, else new folds.
    preset
        Named model, e.g. vit_tiny_p8.
    config
        YAML file with settings, such as plan.yaml.
    set_
        One setting, e.g. --set optimizer.lr=5e-4; may be repeated.
    max_steps
        Optimiser steps of each fold.
    max_minutes
        Wall-clock limit of each fold; the learning-rate schedule ends with it.
    seed
        Seed of all random choices, the same in every fold.
    """

    folds: int | None = None
    splits: Path | None = None
    preset: str | None = None
    config: Path | None = None
    set_: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set", negative="")] = ()
    max_steps: int | None = None
    max_minutes: float | None = None
    seed: int | None = None

    def flags(self) -> dict[str, Any]:
        """The settings given by flags of their own."""
        from sparseg.cli.settings import given_flags

        return given_flags(
            preset=self.preset,
            max_steps=self.max_steps,
            max_minutes=self.max_minutes,
            seed=self.seed,
            num_folds=self.folds,
        )


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Machines:
    """Where the folds are trained.

    Parameters
    ----------
    jobs
        Folds trained at once; default: one per device of --device-list, else 1.
    device_list
        GPUs to share among the folds, e.g. 0,1,2,3.
    slurm
        Send one Slurm job per fold, e.g. partition=gpu,time=24:00:00,gpus=1 (needs the extra slurm).
    slurm_script
        Write a batch script for sbatch with the options of --slurm instead of sending jobs.
    fold
        Train only this fold, counted from 0; what Slurm jobs call.
    collect
        Train nothing: predict and score, for folds that were trained elsewhere.
    device
        Where the predictions run; auto takes a GPU if there is one.
    """

    jobs: int | None = None
    device_list: str = ""
    slurm: str | None = None
    slurm_script: Path | None = None
    fold: int | None = None
    collect: Annotated[bool, cyclopts.Parameter(negative="")] = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def cv(
    dataset: Path,
    /,
    *,
    out: Path,
    settings: Settings | None = None,
    machines: Machines | None = None,
    cache: Path | None = None,
    skip_bad: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Cross-validate: train every fold, and predict and score every case by the model that did not see it.

    The same command again goes on where it stopped. The folder holds fold_0, fold_1, ... (training runs),
    predictions, summary.json and summary.md; `sparseg predict IMAGE --model FOLDER` asks all folds.
    Exit code 0: all done; 1: a fold or case failed, the others are complete; 130, 143: stopped by a signal.

    Parameters
    ----------
    dataset
        Folder of cases, or a list of them (JSON, CSV), in any layout of docs/how-to/datasets.md.
    out
        Folder to write.
    cache
        Folder of prepared cases; by default in the user's cache folder.
    skip_bad
        Leave out cases that cannot be used, by name, instead of refusing the dataset.
    """
    from sparseg.crossval import folder

    settings, machines = settings or Settings(), machines or Machines()
    _require_sensible(machines)
    more = [*(["--cache", str(cache)] if cache else []), *(["--skip-bad"] if skip_bad else [])]
    found = None
    if machines.fold is not None or machines.collect or folder.exists(out):
        found = _found(out, settings)
    if found is not None and machines.fold is not None:
        return _become(found, dataset, machines.fold, more)
    opened, facts = _open(dataset, skip_bad)
    if found is None:
        found = _start(out, opened, facts, settings)
    folder.require_same_cases(found, opened, facts)
    if machines.slurm is not None or machines.slurm_script is not None:
        return _to_slurm(found, dataset, machines, more)
    code = 0 if machines.collect else _train(found, dataset, machines, more)
    return code or _collect(found, opened, facts, machines)


def _require_sensible(machines: Machines) -> None:
    from sparseg.errors import ConfigError

    if machines.jobs is not None and machines.jobs < 1:
        raise ConfigError("at least one fold is trained at once", received=machines.jobs, remedy="--jobs 1")
    if machines.device_list and not all(name.strip() for name in machines.device_list.split(",")):
        raise ConfigError(
            "a list of devices must name them with commas between",
            received=machines.device_list,
            remedy="e.g. --device-list 0,1",
            where="--device-list",
        )
    ways = {"--fold": machines.fold, "--collect": machines.collect or None, "--slurm": machines.slurm}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(
            "--fold, --collect and --slurm exclude each other", received=" ".join(given), remedy="choose one"
        )


def _found(out: Path, settings: Settings) -> CrossValidation:
    """What is in the folder, if the settings given now are those it was started with."""
    from sparseg.cli.settings import load_settings
    from sparseg.crossval import folder
    from sparseg.datasets.splits import read_splits
    from sparseg.errors import ConfigError

    found = folder.read(out)
    folder.require_same_settings(found, load_settings(settings.config), settings.set_, settings.flags())
    if settings.splits is not None and read_splits(settings.splits).folds != found.splits.folds:
        raise ConfigError(
            "the folds of a cross-validation stay the same",
            received="others",
            remedy="leave out --splits to go on, or choose another --out",
            where=settings.splits,
            code="cv-settings",
        )
    return found


def _open(path: Path, skip_bad: bool) -> tuple[Dataset, list[CaseFacts]]:
    from sparseg.cli.output import progress_bar
    from sparseg.training.data import open_dataset

    with progress_bar() as bar:
        task = bar.add_task("reading", total=None)
        found, facts = open_dataset(path, skip_bad=skip_bad, on_case=lambda _: bar.advance(task))
    sys.stdout.write(f"{found.describe()}\n")
    return found, facts


def _start(out: Path, dataset: Dataset, facts: Sequence[CaseFacts], settings: Settings) -> CrossValidation:
    """Settings and folds, once for all."""
    from sparseg.cli.settings import combine_settings, load_settings, plan_for_device
    from sparseg.crossval import folder
    from sparseg.training.data import choose_splits

    values, notes = load_settings(settings.config), {}
    config = _for_all(combine_settings(values, settings.set_, settings.flags(), where=settings.config))
    splits = choose_splits(dataset, facts, config, settings.splits)
    folder.require_folds(splits, settings.folds)
    if settings.config is None:
        plan = plan_for_device(dataset, facts, settings.preset, settings.set_)
        notes = {"plan.yaml": plan.to_yaml()}
        planned = combine_settings(plan.settings, settings.set_, settings.flags(), where=None)
        config = _for_all(planned)
    found = folder.create(out, config, splits, dataset, facts, notes)
    sys.stdout.write(
        f"{len(found.folds)} folds of {_sizes(found)} cases; settings in {out / folder.CONFIG}\n"
    )
    return found


def _for_all(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"fold": 0})  # every child is told its own


def _sizes(found: CrossValidation) -> str:
    sizes = sorted({len(names) for names in found.splits.folds})
    return " to ".join(str(size) for size in sorted({sizes[0], sizes[-1]}))


def _train(found: CrossValidation, dataset: Path, machines: Machines, more: Sequence[str]) -> int:
    """Train what is not finished; 0 if all folds are."""
    from sparseg.cli.cv_live import FoldWatcher
    from sparseg.cli.output import print_table, progress_bar
    from sparseg.crossval.children import End, make_slots, run_folds

    devices = [name.strip() for name in machines.device_list.split(",")] if machines.device_list else []
    jobs = [job for job in (_job(found, dataset, fold, more) for fold in found.folds) if job is not None]
    slots = make_slots(machines.jobs or len(devices) or 1, devices)
    with progress_bar() as bar:
        outcomes, received = run_folds(jobs, slots, FoldWatcher(bar, found.config.max_steps))
    left = [outcome for outcome in outcomes if outcome.end is not End.DONE]
    if not left:
        return 0
    print_table("not finished", ("fold", "what", "why"), [_row(outcome) for outcome in left])
    command = ["sparseg", "cv", str(dataset), "--out", str(found.folder), *more]
    command += ["--jobs", str(machines.jobs)] if machines.jobs else []
    command += ["--device-list", machines.device_list] if machines.device_list else []
    sys.stdout.write(f"go on with: {_line(command)}\n")
    return 128 + received if received in (signal.SIGINT, signal.SIGTERM) else 1


def _row(outcome: Outcome) -> tuple[str, str, str]:
    return f"fold {outcome.fold}", outcome.end.value, outcome.message or "-"


def _line(command: Sequence[str]) -> str:
    import shlex

    return shlex.join(command)


def _job(found: CrossValidation, dataset: Path, fold: int, more: Sequence[str]) -> FoldJob | None:
    """What is to be done for a fold; None if it is finished."""
    from sparseg.crossval.children import FoldJob, train_command
    from sparseg.crossval.folder import CONFIG, SPLITS
    from sparseg.crossval.status import read_status

    run = found.run(fold)
    status = read_status(run, fold)
    if status.finished:
        sys.stdout.write(f"fold {fold}: done before\n")
        return None
    command = train_command(
        dataset,
        run,
        fold,
        config=found.folder / CONFIG,
        splits=found.folder / SPLITS,
        resume=status.started,
        more=more,
    )
    return FoldJob(fold, command, run, found.log(fold))


def _become(found: CrossValidation, dataset: Path, fold: int, more: Sequence[str]) -> int:
    """Turn into the training of one fold; returns only if there is nothing left to train."""
    from sparseg.crossval.children import become
    from sparseg.errors import ConfigError

    if fold not in found.folds:
        raise ConfigError(
            f"the fold must be from 0 to {len(found.folds) - 1}",
            received=fold,
            remedy="choose another --fold",
            where="--fold",
        )
    job = _job(found, dataset, fold, more)
    if job is not None:
        become(job)
    return 0


def _to_slurm(found: CrossValidation, dataset: Path, machines: Machines, more: Sequence[str]) -> int:
    """Send one job per fold that is not finished, or write the script that does."""
    from sparseg.crossval.slurm import parse_options, script, submit
    from sparseg.crossval.status import read_status
    from sparseg.volumes.atomic import write_bytes_atomically

    options = parse_options(machines.slurm) if machines.slurm else {}
    where = [str(dataset.absolute()), "--out", str(found.folder.absolute()), *more]
    command = [sys.executable, "-m", "sparseg", "cv", *where, "--fold"]
    (found.folder / "logs").mkdir(exist_ok=True)
    if machines.slurm_script is not None:
        write_bytes_atomically(machines.slurm_script, script(found, command, options).encode())
        sys.stdout.write(f"send the folds with: {_line(['sbatch', str(machines.slurm_script)])}\n")
    else:
        left = [fold for fold in found.folds if not read_status(found.run(fold), fold).finished]
        jobs = submit(found, {fold: (*command, str(fold)) for fold in left}, options)
        sys.stdout.writelines(f"fold {fold}: job {job}\n" for fold, job in jobs.items())
    sys.stdout.write(f"when they are done: {_line(['sparseg', 'cv', *where, '--collect'])}\n")
    return 0


def _collect(found: CrossValidation, dataset: Dataset, facts: Sequence[CaseFacts], machines: Machines) -> int:
    """Predict, score and tell; refuses while a fold is not finished."""
    from sparseg.cli.cv_live import CaseWatcher
    from sparseg.cli.output import print_table, progress_bar
    from sparseg.cli.settings import choose_device
    from sparseg.crossval.collect import predict_and_score, require_finished
    from sparseg.crossval.summary import TEXT, summarise, table, write_summary
    from sparseg.predict.settings import PredictSettings

    require_finished(found)
    settings = PredictSettings(device=choose_device(machines.device))
    with progress_bar() as bar:
        scored = predict_and_score(found, dataset, facts, settings, CaseWatcher(bar))
    summary = summarise(found, dataset, scored)
    write_summary(found, summary)
    head, *rows = table(summary)
    print_table(f"{summary['num_cases']} case(s), NSD at {summary['tolerance_mm']:g} mm", head, rows)
    predict = _line(["sparseg", "predict", "IMAGE", "--model", str(found.folder), "--out", "labels"])
    sys.stdout.write(
        f"{found.folder / TEXT}\npredictions in {found.predictions}\nsegment with all folds: {predict}\n"
    )
    return 1 if summary["failed"] else 0
