"""`sparseg compare`: rivals under one budget on the same crops and folds, one table and one page."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts

if TYPE_CHECKING:
    from rich.progress import Progress

    from sparseg.compare.cases import Cases
    from sparseg.compare.plan import Budget, Comparison, Plan, Run
    from sparseg.compare.variants import Definitions


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Matched:
    """What all runs share.

    Parameters
    ----------
    variants
        paper, method, beyond, peers or peers_tiny (lists), names such as sparse,dense_p8, or a .yaml file of
        rows, with commas between; default: paper.
    seeds
        Trainings of every variant, with seeds from 0; default: 3.
    folds
        Folds that validate in turn, e.g. 0,1,2; default: 0.
    max_steps
        Budget: optimiser steps of each training.
    max_minutes
        Budget: wall-clock minutes of each training, as an alternative to steps.
    recipe
        YAML file with training settings common to all; without one those that `sparseg plan` finds.
    set_
        One common setting, e.g. --set optimizer.lr=5e-4; may be repeated.
    splits
        splits.json or nnU-Net's splits_final.json; by default the one beside the data, else new folds.
    """

    variants: str | None = None
    seeds: int | None = None
    folds: str | None = None
    max_steps: int | None = None
    max_minutes: float | None = None
    recipe: Path | None = None
    set_: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set", negative="")] = ()
    splits: Path | None = None


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Machines:
    """Where the runs are trained and measured.

    Parameters
    ----------
    jobs
        Runs trained at once; default: one per device of --device-list, else 1.
    device_list
        GPUs to share among the trainings, e.g. 0,1,2,3.
    collect
        Train nothing: score, measure and report what there is.
    no_speed
        Measure no speeds and no memory, e.g. beside other programs; --collect measures them later.
    device
        Where predictions run and speeds are measured; auto takes a GPU if there is one.
    """

    jobs: int | None = None
    device_list: str = ""
    collect: Annotated[bool, cyclopts.Parameter(negative="")] = False
    no_speed: Annotated[bool, cyclopts.Parameter(negative="")] = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def compare(
    dataset: Path,
    /,
    *,
    out: Path,
    matched: Matched | None = None,
    machines: Machines | None = None,
    cache: Path | None = None,
    skip_bad: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Train rivals under one budget, score and time them, and show whether a difference is more than chance.

    The same command again goes on where it stopped; variants, seeds and folds may be added. Runs go seed by
    seed, so that a comparison that is not finished can be read all the same, with --collect. The folder
    holds compare.html, table.md, table.csv, results.json, pareto.png, curves.png, and all runs.
    Exit code 0: all done; 1: a run or case failed; 130, 143: stopped by a signal.

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
    from sparseg.compare import plan as plans

    matched, machines = matched or Matched(), machines or Machines()
    _require_sensible(matched, machines)
    found = plans.read(out) if machines.collect or plans.exists(out) else None
    definitions = _definitions(matched, found)
    cases = _open(dataset, skip_bad)
    found = (
        _start(out, cases, matched, definitions)
        if found is None
        else _go_on(found, cases, matched, definitions)
    )
    more = [*(["--cache", str(cache)] if cache else []), *(["--skip-bad"] if skip_bad else [])]
    if not machines.collect:
        received = _train(found, dataset, machines, more)
        if received in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            command = ["sparseg", "compare", str(dataset), "--out", str(out), *more]
            sys.stdout.write(f"go on with: {_line(command)}\nor see what there is with --collect\n")
            return 128 + received
    return _collect(found, cases, machines)


def _require_sensible(matched: Matched, machines: Machines) -> None:
    from sparseg.errors import ConfigError

    if matched.max_steps is not None and matched.max_minutes is not None:
        raise ConfigError(
            "a comparison has one budget: equal steps or equal minutes",
            received="--max-steps and --max-minutes",
            remedy="give one of them; for the other, compare again with another --out",
        )
    for name, value in (("--seeds", matched.seeds), ("--jobs", machines.jobs)):
        if value is not None and value < 1:
            raise ConfigError(
                f"{name} must be at least 1", received=value, remedy=f"e.g. {name} 3", where=name
            )
    if machines.device_list and not all(name.strip() for name in machines.device_list.split(",")):
        raise ConfigError(
            "a list of devices must name them with commas between",
            received=machines.device_list,
            remedy="e.g. --device-list 0,1",
            where="--device-list",
        )


def _definitions(matched: Matched, found: Comparison | None) -> Definitions:
    """The rows asked for, else those that are there, else the paper's."""
    from sparseg.compare.variants import parse_variants

    if matched.variants is None and found is not None:
        return {name: found.plan.definitions[name] for name in found.plan.variants}
    return parse_variants(matched.variants or "paper")


def _open(path: Path, skip_bad: bool) -> Cases:
    from sparseg.cli.output import progress_bar
    from sparseg.compare.cases import open_cases

    with progress_bar() as bar:
        task = bar.add_task("reading", total=None)
        cases = open_cases(path, skip_bad=skip_bad, on_case=lambda _: bar.advance(task))
    scored = (
        f"scored on {len(cases.test)} labelled test cases" if cases.test else "scored on validation cases"
    )
    sys.stdout.write(f"{cases.dataset.describe()}, {scored}\n")
    return cases


def _start(out: Path, cases: Cases, matched: Matched, definitions: Definitions) -> Comparison:
    """Settings and folds, once for all."""
    from sparseg.compare import plan as plans
    from sparseg.compare.fit import misfits
    from sparseg.config import parse_config
    from sparseg.training.config import TrainConfig
    from sparseg.training.data import choose_splits

    base = _base(cases, matched)
    config = parse_config(TrainConfig, base, where=matched.recipe or "")
    budget = _budget(matched) or plans.budget_of(config)
    splits = choose_splits(cases.dataset, cases.facts, config, matched.splits)
    seeds, folds = range(matched.seeds or 3), _folds(matched.folds) or (0,)
    wanted = _plan(cases, base, definitions, budget, seeds, folds)
    plan = plans.without(wanted, misfits(wanted, cases.dataset, matched.variants or "paper"))
    found = plans.create(out, plan, splits)
    sys.stdout.write(f"{len(found.runs)} runs of {budget.describe()}; plan in {out / plans.FILE}\n")
    return found


def _go_on(found: Comparison, cases: Cases, matched: Matched, definitions: Definitions) -> Comparison:
    """What is there, with what was added, if the settings given now are those it was started with."""
    from sparseg.cli.settings import load_settings
    from sparseg.compare import plan as plans
    from sparseg.compare.fit import misfits
    from sparseg.config import override
    from sparseg.datasets.splits import read_splits
    from sparseg.errors import ConfigError

    if matched.splits is not None and read_splits(matched.splits).folds != found.splits.folds:
        raise ConfigError(
            "the folds of a comparison stay the same",
            received="others",
            remedy="leave out --splits to go on, or choose another --out",
            where=matched.splits,
            code="compare-settings",
        )
    # Without a recipe --set changes what was started, which is not planned again.
    base = found.plan.base if matched.recipe is None else load_settings(matched.recipe)
    base = override(base, matched.set_)
    seeds = found.plan.seeds if matched.seeds is None else range(matched.seeds)
    folds = _folds(matched.folds) or found.plan.folds
    wanted = _plan(cases, base, definitions, _budget(matched) or found.plan.budget, seeds, folds)
    return plans.extend(found, plans.without(wanted, misfits(wanted, cases.dataset, matched.variants or "")))


def _plan(
    cases: Cases,
    base: dict[str, Any],
    definitions: Definitions,
    budget: Budget,
    seeds: Sequence[int],
    folds: Sequence[int],
) -> Plan:
    from sparseg.compare.plan import make_plan
    from sparseg.datasets.fingerprint import fingerprint_key

    return make_plan(
        dataset=cases.dataset.name,
        fingerprint=fingerprint_key(cases.facts),
        base=base,
        definitions=definitions,
        budget=budget,
        seeds=seeds,
        folds=folds,
    )


def _base(cases: Cases, matched: Matched) -> dict[str, Any]:
    """Settings common to all: the recipe's, else those that are planned for the data.

    Rows are the paper's kind of network with one thing changed, so it is planned, not the fast one.
    """
    from sparseg.cli.settings import load_settings, plan_for_device
    from sparseg.config import override
    from sparseg.planning.network import STAGED

    if matched.recipe is not None:
        return override(load_settings(matched.recipe), matched.set_)
    planned = plan_for_device(cases.dataset, cases.facts, None, matched.set_)
    staged = STAGED.get(planned.settings["preset"])
    if staged is not None and "preset" not in override({}, matched.set_):
        planned = plan_for_device(cases.dataset, cases.facts, staged, matched.set_)
    return override(planned.settings, matched.set_)


def _budget(matched: Matched) -> Budget | None:
    from sparseg.compare.plan import Budget
    from sparseg.config import parse_config

    for kind, amount in (("steps", matched.max_steps), ("minutes", matched.max_minutes)):
        if amount is not None:
            return parse_config(Budget, {"kind": kind, "amount": amount}, where=f"--max-{kind}")
    return None


def _folds(text: str | None) -> tuple[int, ...] | None:
    from sparseg.errors import ConfigError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(
            "folds must be numbers from 0 with commas between",
            received=text,
            remedy="e.g. --folds 0,1,2",
            where="--folds",
        )
    return tuple(int(part) for part in parts)


def _train(found: Comparison, dataset: Path, machines: Machines, more: Sequence[str]) -> int | None:
    """Train what is not finished; returns the signal that stopped it."""
    from sparseg.cli.compare_live import watch_runs
    from sparseg.cli.output import progress_bar
    from sparseg.compare.train import train_runs
    from sparseg.crossval.children import make_slots

    devices = [name.strip() for name in machines.device_list.split(",")] if machines.device_list else []
    slots = make_slots(machines.jobs or len(devices) or 1, devices)
    with progress_bar() as bar:
        return train_runs(found, dataset, slots, watch_runs(bar, found), more=more)


def _collect(found: Comparison, cases: Cases, machines: Machines) -> int:
    """Score, measure and report."""
    from sparseg.cli.compare_live import ScoreWatcher
    from sparseg.cli.output import print_table, progress_bar
    from sparseg.cli.settings import choose_device
    from sparseg.compare.report import PAGE, write_report
    from sparseg.compare.results import make_results
    from sparseg.compare.scores import score_runs
    from sparseg.compare.tables import quality_table, speed_table, unfinished, verdicts
    from sparseg.predict.settings import PredictSettings

    device = choose_device(machines.device)
    with progress_bar() as bar:
        scored = score_runs(found, cases, PredictSettings(device=device), ScoreWatcher(bar))
        broken = [run for run, scores in scored.items() if scores.error is not None]
        speeds = _speeds(found, cases, None if machines.no_speed else device, broken, bar)
    results = make_results(found, cases, scored, speeds)
    write_report(found, results)
    for title, rows in (("quality", quality_table(results)), ("speed", speed_table(results))):
        head, *body = rows
        print_table(title, head, body)
    left = unfinished(results)
    sys.stdout.write("".join(f"{line}\n" for line in [*verdicts(results), *left, str(found.folder / PAGE)]))
    return 1 if left else 0


def _speeds(
    found: Comparison, cases: Cases, device: str | None, broken: Sequence[Run], bar: Progress
) -> dict[str, Any]:
    """Speeds measured now, without a device those measured before; a failure is told beside these."""
    import torch

    from sparseg.compare.speed import measure_speeds, read_speeds
    from sparseg.errors import SparsegError

    if device is None:
        return read_speeds(found)
    task = bar.add_task("speeds", total=None)
    try:
        return measure_speeds(
            found,
            cases,
            device=device,
            broken=broken,
            on_progress=lambda line: bar.update(task, description=line),
        )
    except (SparsegError, torch.OutOfMemoryError) as error:
        return {**read_speeds(found), "error": str(error).partition("\n")[0]}


def _line(command: Sequence[str]) -> str:
    import shlex

    return shlex.join(command)
