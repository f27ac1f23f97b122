"""The folder of a comparison: what is compared, under which budget, on which folds and seeds.

compare.yaml  splits.json               what all runs share
settings/<variant>/seed_<s>.yaml        settings of each run
runs/<variant>/fold_<k>/seed_<s>/       training runs
logs/                                   what each training printed, or why it failed
predictions/<variant>/fold_<k>/seed_<s>/
speed.json  results.json  table.csv  table.md  pareto.png  curves.png  compare.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sparseg.compare.variants import Definitions, base_model, base_preset, settings_of
from sparseg.config import Config, dump_yaml, load_yaml, parse_config
from sparseg.datasets.splits import Splits, read_splits, write_splits
from sparseg.errors import ConfigError
from sparseg.models.config import SegmenterConfig
from sparseg.models.network import parse_network
from sparseg.models.presets import preset
from sparseg.training.config import TrainConfig
from sparseg.volumes.atomic import write_bytes_atomically

FILE, SPLITS, SETTINGS = "compare.yaml", "splits.json", "settings"
REFERENCE, OURS = "dense_p8", "sparse"
_ALL_ROWS = "settings common to all rows"
# With a time limit the steps are as many as fit.
_ENDLESS = 10_000_000


class Budget(Config):
    """What every training may take.

    Attributes:
        kind: Equal optimiser `steps`, or equal `minutes` on the clock (validations of the run included).
        amount: How many.
    """

    kind: Literal["steps", "minutes"]
    amount: float = Field(gt=0)

    def describe(self) -> str:
        """E.g. "600 steps" or "5 minutes"."""
        return f"{self.amount:g} {self.kind if self.amount != 1 else self.kind[:-1]}"


class Plan(Config):
    """Content of `compare.yaml`.

    Attributes:
        dataset: Title of the dataset.
        fingerprint: Hash of its training cases.
        budget: Of every run.
        seeds: Each a training of every variant; equal seeds see equal crops.
        folds: Folds that validate in turn.
        base: Settings common to all variants, without defaults.
        definitions: Name -> what a file said of the row; None for a name that the package knows.
        variants: Name -> all settings of its runs; their `fold` and `seed` mean nothing.
        left_out: Names of a list that cannot be built here, with the reason.
    """

    dataset: str
    fingerprint: str
    budget: Budget
    seeds: tuple[int, ...] = Field(min_length=1)
    folds: tuple[int, ...] = Field(min_length=1)
    base: dict[str, Any]
    definitions: dict[str, dict[str, Any] | None]
    variants: dict[str, TrainConfig] = Field(min_length=1)
    left_out: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, values in (("seeds", self.seeds), ("folds", self.folds)):
            if len(set(values)) < len(values) or min(values) < 0:
                raise ValueError(f"{name} must be different numbers from 0, got {values}")
        return self

    @property
    def reference(self) -> str:
        """The row that the others are compared with: dense patch 8, else the first."""
        return REFERENCE if REFERENCE in self.variants else next(iter(self.variants))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Comparisons (one, other): every row with the reference, ours with every other one."""
        found = [(name, self.reference) for name in self.variants if name != self.reference]
        if OURS in self.variants:
            found += [(OURS, name) for name in self.variants if name not in (OURS, self.reference)]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Run:
    """One training: a variant, the fold that validates, and a seed."""

    variant: str
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Path of the run in each of the folders."""
        return f"{self.variant}/fold_{self.fold}/seed_{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """A plan with its folds, and where everything lies."""

    folder: Path
    plan: Plan
    splits: Splits

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed: what is interrupted can be compared all the same."""
        plan = self.plan
        return [Run(name, fold, seed) for seed in plan.seeds for fold in plan.folds for name in plan.variants]

    def run_folder(self, run: Run) -> Path:
        """Training run."""
        return self.folder / "runs" / run.name

    def model(self, run: Run) -> Path:
        """The model at the end of the budget, which is what is scored."""
        return self.run_folder(run) / "last"

    def log(self, run: Run) -> Path:
        """What the training printed."""
        return self.folder / "logs" / f"{run.name}.txt"

    def predictions(self, run: Run) -> Path:
        """Label files and scores."""
        return self.folder / "predictions" / run.name

    def settings(self, run: Run) -> Path:
        """Settings file of a run."""
        return self.folder / SETTINGS / run.variant / f"seed_{run.seed}.yaml"


def make_plan(
    *,
    dataset: str,
    fingerprint: str,
    base: Mapping[str, Any],
    definitions: Definitions,
    budget: Budget,
    seeds: Sequence[int],
    folds: Sequence[int],
) -> Plan:
    """Settle the settings of every variant.

    Args:
        dataset: Title.
        fingerprint: Of its training cases.
        base: Settings common to all, without defaults.
        definitions: From `parse_variants`.
        budget: Of every run.
        seeds: See `Plan`.
        folds: See `Plan`.

    Raises:
        ConfigError: settings that are unknown or do not go together.
    """
    parse_config(TrainConfig, base, where=_ALL_ROWS)
    base_model(base)
    variants = {
        name: _within(budget, settings_of(name, definition, base)) for name, definition in definitions.items()
    }
    values = {
        "dataset": dataset,
        "fingerprint": fingerprint,
        "budget": budget.model_dump(),
        "seeds": tuple(seeds),
        "folds": tuple(folds),
        "base": dict(base),
        "definitions": definitions,
        "variants": {name: config.model_dump(mode="json") for name, config in variants.items()},
    }
    return parse_config(Plan, values, where="compare")


def budget_of(config: TrainConfig) -> Budget:
    """A recipe's own budget: its steps, unless it has minutes and does not say how many steps."""
    if config.max_minutes is not None and "max_steps" not in config.model_fields_set:
        return Budget(kind="minutes", amount=config.max_minutes)
    return Budget(kind="steps", amount=config.max_steps)


def without(plan: Plan, left_out: Mapping[str, str]) -> Plan:
    """The plan without variants that cannot be built.

    Raises:
        ConfigError: nothing is left.
    """
    kept = {name: config for name, config in plan.variants.items() if name not in left_out}
    if not kept:
        raise ConfigError(
            "at least one variant must fit the dataset and the recipe",
            received="; ".join(left_out.values()),
            remedy="choose another roi_size or patch_size in the recipe, or other variants",
            where="--variants",
        )
    return plan.model_copy(update={"variants": kept, "left_out": {**plan.left_out, **left_out}})


def create(folder: Path, plan: Plan, splits: Splits) -> Comparison:
    """Write a new comparison, also over what a start that was cut off has left.

    Raises:
        ConfigError: the folder holds something else.
    """
    own = {SPLITS, SETTINGS}
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - own):
        raise ConfigError(
            "a new comparison needs an empty folder",
            received="a folder that holds other files" if folder.is_dir() else "a file",
            remedy="choose another --out",
            where=folder,
            code="compare-folder",
        )
    _require_folds(plan, splits)
    folder.mkdir(parents=True, exist_ok=True)
    write_splits(folder / SPLITS, splits)
    return _store(Comparison(folder, plan, splits))


def exists(folder: Path) -> bool:
    """Whether a folder holds a comparison to go on with."""
    return (folder / FILE).is_file() and (folder / SPLITS).is_file()


def read(folder: Path) -> Comparison:
    """Read a comparison.

    Raises:
        ConfigError: none there, or a plan that is not valid.
        DatasetError: folds that are not valid.
    """
    if not exists(folder):
        raise ConfigError(
            f"a comparison holds {FILE} and {SPLITS}",
            received="not both",
            remedy="start it first: sparseg compare DATASET --out FOLDER",
            where=folder,
            code="compare-none",
        )
    plan = parse_config(Plan, load_yaml(folder / FILE), where=folder / FILE)
    return Comparison(folder, plan, read_splits(folder / SPLITS))


def extend(found: Comparison, wanted: Plan) -> Comparison:
    """Go on with a comparison: variants, seeds and folds may be added, nothing else may change.

    Raises:
        ConfigError: names the first settings that differ.
    """
    changed = _differences(found.plan, wanted)
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise ConfigError(
            "all runs of a comparison have the settings it was started with",
            received="; ".join(changed[:4]) + more,
            remedy="leave these out to go on, or choose another --out",
            where=found.folder / FILE,
            code="compare-settings",
        )
    # A row that is there stays as it is written, were it only in other words.
    added = {name: row for name, row in wanted.variants.items() if name not in found.plan.variants}
    plan = found.plan.model_copy(
        update={
            "seeds": _joined(found.plan.seeds, wanted.seeds),
            "folds": _joined(found.plan.folds, wanted.folds),
            "definitions": {**wanted.definitions, **found.plan.definitions},
            "variants": {**found.plan.variants, **added},
            "left_out": {**found.plan.left_out, **wanted.left_out},
        }
    )
    _require_folds(plan, found.splits)
    return _store(replace(found, plan=plan))


def _within(budget: Budget, config: TrainConfig) -> TrainConfig:
    """Settings under the budget; early stopping would give some rows a smaller one."""
    limits: dict[str, Any] = {"max_steps": _ENDLESS, "max_minutes": budget.amount}
    if budget.kind == "steps":
        limits = {"max_steps": int(budget.amount), "max_minutes": None}
    values = config.model_dump() | limits | {"patience": None, "fold": 0, "seed": 0}
    return parse_config(TrainConfig, values)


def _store(found: Comparison) -> Comparison:
    for run in found.runs:
        config = found.plan.variants[run.variant].model_copy(update={"seed": run.seed})
        found.settings(run).parent.mkdir(parents=True, exist_ok=True)
        content = dump_yaml(config.model_dump(mode="json"), sort_keys=False)
        write_bytes_atomically(found.settings(run), content.encode())
    # Last: a folder with a plan is one that can be gone on with.
    text = dump_yaml(found.plan.model_dump(mode="json"), sort_keys=False)
    write_bytes_atomically(found.folder / FILE, text.encode())
    return found


def _require_folds(plan: Plan, splits: Splits) -> None:
    if max(plan.folds) >= len(splits.folds):
        raise ConfigError(
            f"a fold must be from 0 to {len(splits.folds) - 1}",
            received=max(plan.folds),
            remedy="choose other folds",
            where="--folds",
        )


def _joined(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({*old, *new}))


def _differences(old: Plan, new: Plan) -> list[str]:
    """`what: old, now new` for every setting that both plans have and that differs."""
    pairs = [
        ("", _common(old), _common(new)),
        # Rows that only one plan has are matched by nothing else.
        (f"{_ALL_ROWS}: ", _settled(_base_config(old)), _settled(_base_config(new))),
    ]
    pairs += [
        (f"{name}: ", _settled(config), _settled(_as_it_was(name, old, new)))
        for name, config in old.variants.items()
        if name in new.variants
    ]
    return [
        f"{head}{key} was {before.get(key)}, now {after.get(key)}"
        for head, before, after in pairs
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _as_it_was(name: str, old: Plan, new: Plan) -> TrainConfig:
    """A row's settings now, with the network of the folder where only the code reads the row otherwise.

    A row that named the default preset beside a recipe that named none once lost the recipe's model.
    """
    now, row = new.variants[name], old.definitions.get(name)
    named = row is not None and row == new.definitions.get(name) and row.get("preset")
    was_lost = "preset" not in old.base and named == base_preset(old.base)
    return now.model_copy(update={"model": old.variants[name].model}) if was_lost else now


def _common(plan: Plan) -> dict[str, Any]:
    return _flat(plan.model_dump(mode="json", include={"dataset", "fingerprint", "budget"}))


def _base_config(plan: Plan) -> TrainConfig:
    """What a row without settings of its own would have."""
    return _within(plan.budget, parse_config(TrainConfig, plan.base, where=_ALL_ROWS))


def _settled(config: TrainConfig) -> dict[str, Any]:
    """All settings and those of the network they make: a default that is spelt out is no other setting."""
    network = parse_network({**preset(config.preset), **config.model}, where="model")
    scoring = network.scoring if isinstance(network, SegmenterConfig) else "predictor"
    parts = {"model": network, "selection": config.selection.for_scoring(scoring)}
    return _flat(
        config.model_dump(mode="json") | {name: part.model_dump(mode="json") for name, part in parts.items()}
    )


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested mappings as one, `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{head}{key}.")
        else:
            result[f"{head}{key}"] = value
    return result
