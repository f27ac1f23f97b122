"""`sparseg plan`: look at a dataset and write the settings it should be trained with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

if TYPE_CHECKING:
    from sparseg.datasets.dataset import Dataset
    from sparseg.datasets.facts import CaseFacts
    from sparseg.datasets.splits import Splits
    from sparseg.planning.plan import Plan

_MAX_WARNINGS = 10


def plan(
    dataset: Path,
    /,
    *,
    out: Path = Path("plan.yaml"),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    preset: str | None = None,
    no_measure: Annotated[bool, cyclopts.Parameter(name="--no-measure", negative="")] = False,
    workers: int | None = None,
    force: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Measure a dataset and write plan.yaml, the settings of a training run with the reason for each.

    Go on with: sparseg train DATASET --config plan.yaml. The folds are written to splits.json beside it;
    cases that are in a splits.json already there stay in their folds.

    Parameters
    ----------
    dataset
        Dataset folder, or a file that lists the cases.
    out
        File to write.
    device
        Where training will run: decides the size of the network; auto takes a GPU if there is one.
    preset
        Named model, e.g. vit_small_p8; by default one that fits the memory.
    no_measure
        Do not time training steps.
    workers
        Processes that read files; default: all processors.
    force
        Replace a plan that was edited.
    """
    from sparseg.cli.output import progress_bar
    from sparseg.datasets.fingerprint import load_or_make_fingerprint
    from sparseg.models.presets import preset as find_preset
    from sparseg.planning.plan import make_plan
    from sparseg.training.data import open_dataset

    _require_replaceable(out, force=force)
    chosen = _device(device)
    if preset is not None:
        find_preset(preset)  # a wrong name fails here, before any case is read
    with progress_bar() as bar:
        task = bar.add_task("reading", total=None)
        found, facts = open_dataset(dataset, workers=workers, on_case=lambda _: bar.advance(task))
        sys.stdout.write(f"{found.describe()}\n")
        splits = _splits(out.with_name("splits.json"), found, facts)
        made = make_plan(
            found,
            facts,
            device=chosen,
            preset=preset,
            measure=not no_measure,
            fingerprint=load_or_make_fingerprint(facts),
            workers=workers,
            on_case=lambda _: bar.advance(task),
        )
    _write(out, made, splits)
    _print(made, out, len(splits.folds))
    return 0


def _require_replaceable(out: Path, *, force: bool) -> None:
    """Refuse to lose what a user wrote into a plan.

    Raises:
        ConfigError: a file with edits, or one that is no plan.
    """
    from sparseg.errors import ConfigError
    from sparseg.planning.text import is_unedited

    if force or not out.exists():
        return
    if out.is_dir() or not is_unedited(out.read_text(encoding="utf-8", errors="replace")):
        raise ConfigError(
            "a plan may only replace one that was not edited",
            received="a folder" if out.is_dir() else "a file with other content",
            remedy="choose another --out, or replace it with --force",
            where=out,
            code="plan-edited",
        )


def _device(wanted: str) -> str:
    import torch

    from sparseg.errors import ConfigError

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "the device must be there", received=wanted, remedy="use --device cpu", where="--device"
        )
    return wanted


def _splits(file: Path, dataset: Dataset, facts: Sequence[CaseFacts]) -> Splits:
    """The folds in `file`, with new cases added; without one those that training would use.

    Raises:
        DatasetError: the folds in `file` are those of another dataset.
    """
    from sparseg.datasets.splits import make_folds, read_splits
    from sparseg.errors import DatasetError
    from sparseg.training.config import TrainConfig
    from sparseg.training.data import choose_splits

    if not file.is_file():
        return choose_splits(dataset, facts, TrainConfig())
    previous = read_splits(file)
    names = {case.name for case in dataset.training}
    if previous.names == names:
        return previous
    if not previous.names & names:
        raise DatasetError(
            "splits.json beside the plan must be of the same dataset",
            received="no case in common",
            remedy="choose another folder for --out, or remove the file",
            where=file,
            code="splits-other",
        )
    present = {
        case.name: frozenset(fact.label_counts or {}) - {0}
        for case, fact in zip(dataset.training, facts, strict=True)
    }
    return make_folds(dataset.training, present, previous=previous)


def _write(out: Path, made: Plan, splits: Splits) -> None:
    from sparseg.datasets.splits import write_splits
    from sparseg.volumes.atomic import write_bytes_atomically

    out.parent.mkdir(parents=True, exist_ok=True)
    write_splits(out.with_name("splits.json"), splits)
    write_bytes_atomically(out, made.to_yaml().encode())


def _print(made: Plan, out: Path, num_folds: int) -> None:
    from sparseg.cli.output import print_table

    keys = ("preset", "batch_size", "max_steps", "validate_every")
    rows: list[Sequence[object]] = [(key, made.settings[key]) for key in keys]
    rows += [(f"model.{key}", _text(value)) for key, value in made.settings["model"].items()]
    rows.append(("preprocess.spacing", _text(made.settings["preprocess"]["spacing"])))
    print_table("plan", ("setting", "value"), rows)
    for line in made.estimates.lines():
        sys.stdout.write(f"{line}\n")
    for line in made.warnings[:_MAX_WARNINGS]:
        sys.stdout.write(f"worth a look: {line}\n")
    if len(made.warnings) > _MAX_WARNINGS:
        sys.stdout.write(f"worth a look: {len(made.warnings) - _MAX_WARNINGS} more in the plan\n")
    sys.stdout.write(f"written to {out}, with the reasons; folds in splits.json beside it: {num_folds}\n")


def _text(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)
