"""`sparseg sparsify`: make a dense model sparse, in a short training under its guidance."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import cyclopts

from sparseg.cli.settings import combine_settings, given_flags, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparseg.checkpoints.card import ModelCard
    from sparseg.cli.live import Watcher
    from sparseg.datasets.dataset import Dataset
    from sparseg.datasets.facts import CaseFacts
    from sparseg.models.segmenter import SparseUNETR
    from sparseg.training.config import TrainConfig

# Short and gentle, from no pruning to the full; the labels teach which patches matter.
_DEFAULTS: dict[str, Any] = {
    "max_steps": 500,
    "validate_every": 100,
    "optimizer": {"lr": 3e-4},
    "distill": {"weight": 1.0},
    "selection": {"score_weight": 1.0, "score_target": "foreground", "warmup_share": 0.3},
}
# Of a run to be made sparse: what its data were prepared, cut and judged with.
_KEPT = ("preset", "preprocess", "loss", "sampling", "augment", "batch_size", "positive_share", "overlap")


def sparsify(
    model: Path,
    dataset: Path,
    /,
    *,
    out: Path,
    keep_ratio: float | None = None,
    config: Path | None = None,
    set_: Annotated[tuple[str, ...], cyclopts.Parameter(name="--set", negative="")] = (),
    max_steps: int | None = None,
    max_minutes: float | None = None,
    seed: int | None = None,
    splits: Path | None = None,
    skip_bad: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Make a dense model sparse: add pruning and token assembly, then train briefly.

    The new model starts with all weights of the dense one and learns from its logits as well as from the
    labels. Settings of data and augmentation are those of its run, where MODEL is one. The run folder keeps
    the dense model in teacher/; go on after an interruption with `sparseg train DATASET --out RUN --resume`.

    Parameters
    ----------
    model
        Run or model folder of a dense model (model.pruning_stages=[]), or a .pt file with the weights of
        MONAI's UNETR; the latter needs --set preprocess... or --config, as it was trained.
    dataset
        Folder of cases, or a list of them, with the labels of the dense model.
    out
        Run folder to write.
    keep_ratio
        Share of the tokens that stays at each pruning stage; default: 0.25.
    config
        YAML file with settings that differ.
    set_
        One setting, e.g. --set model.pruning_stages=[0] or --set distill.weight=0; may be repeated.
    max_steps
        Optimiser steps; default: 500.
    max_minutes
        Wall-clock limit; the learning-rate schedule ends with it.
    seed
        Seed of all random choices.
    splits
        splits.json or nnU-Net's splits_final.json; default: those of the run, or the dataset's.
    skip_bad
        Leave out cases that cannot be used, by name, instead of refusing the dataset.
    """
    from sparseg.allocator import keep_freed_memory
    from sparseg.cli.live import Watcher
    from sparseg.cli.output import progress_bar
    from sparseg.cli.train import finish, resumption
    from sparseg.training import ranks, start

    keep_freed_memory()
    given = given_flags(max_steps=max_steps, max_minutes=max_minutes, seed=seed)
    if keep_ratio is not None:
        set_ = (*set_, f"model.keep_ratio={keep_ratio}")
    with ranks.joined(), progress_bar(visible=ranks.rank() == 0) as bar:
        watcher = Watcher(bar, muted=ranks.rank() > 0)
        found, facts, settings = ranks.of_main_process(
            lambda: _order(
                model, dataset, out, _settle(model, config, set_, given, splits), watcher, skip_bad
            )
        )
        watcher.begin(settings.max_minutes, settings.max_steps)
        run, reason, received = start.train(
            found,
            facts,
            out,
            settings,
            watcher,
            splits=splits or _folds_of(model),
            on_size=watcher.on_size,
            on_case=watcher.on_prepared,
        )
    if run.accelerator.is_main_process:
        tokens = " > ".join(map(str, run.plain_net.token_counts()))
        sys.stdout.write(f"tokens per window of {'x'.join(map(str, run.model_config.roi_size))}: {tokens}\n")
    return finish(run, reason, received, resumption(dataset, out, skip_bad=skip_bad))


def _run_of(model: Path) -> Path | None:
    """Return the training run that MODEL is, or is the best or last model of; None for others."""
    from sparseg.training.start import CONFIG

    places = [model, model.parent] if model.name in ("best", "last") else [model]
    return next((place for place in places if (place / CONFIG).is_file()), None)


def _folds_of(model: Path) -> Path | None:
    from sparseg.training.start import SPLITS

    run = _run_of(model)
    return run / SPLITS if run is not None and (run / SPLITS).is_file() else None


class _Order(NamedTuple):
    """What all processes of the run work on."""

    dataset: Dataset
    facts: list[CaseFacts]
    settings: TrainConfig


class _Dense(NamedTuple):
    """A dense network, its card if it has one, and the settings of its run if it is one."""

    net: SparseUNETR
    card: ModelCard | None
    base: dict[str, Any]


def _order(
    model: Path,
    dataset: Path,
    out: Path,
    settled: tuple[_Dense, TrainConfig],
    watcher: Watcher,
    skip_bad: bool,
) -> _Order:
    """Read the dataset and keep the dense model in the run folder."""
    from sparseg.cli.train import open_for_training
    from sparseg.training import start
    from sparseg.training.teacher import store_teacher

    dense, settings = settled
    start.require_free(out, resume=False)
    found, facts = open_for_training(dataset, watcher, skip_bad)
    card = _card(model, dense, found, settings)
    watcher.say(_describe(model, card, settings))
    store_teacher(out, dense.net, card)
    return _Order(found, facts, settings)


def _settle(
    model: Path, config: Path | None, set_: Sequence[str], given: dict[str, Any], splits: Path | None
) -> tuple[_Dense, TrainConfig]:
    """Read the dense model and settle the settings: its run's, ours, the file's, then --set and flags.

    With the folds of its run goes its fold: what the dense model was trained on must not judge the new one.
    """
    from sparseg.config import merge, override
    from sparseg.errors import ConfigError
    from sparseg.training.teacher import sparse_settings

    own = override(merge(_DEFAULTS, load_settings(config)), set_)
    changes = own.pop("model", {})
    dense = _read(model, changes, with_fold=splits is None and _folds_of(model) is not None)
    network = sparse_settings(dense.net.config, changes)
    for name in ("in_channels", "num_classes"):  # the dataset decides them, and is compared later
        del network[name]
    settings = combine_settings({**merge(dense.base, own), "model": network}, (), given, where=config)
    if settings.preprocess is None:
        raise ConfigError(
            "foreign weights need the preprocessing they were trained with",
            received="none",
            remedy="give it in --config, or e.g. --set "
            "'preprocess={spacing: [1.5, 1.5, 2.0], intensity: {kind: ct, clip: [-175, 250]}}'",
            where=model,
            code="sparsify-preprocess",
        )
    return dense, settings


def _read(model: Path, changes: dict[str, Any], *, with_fold: bool) -> _Dense:
    from sparseg.checkpoints.adapters_monai import read_monai_unetr
    from sparseg.checkpoints.folder import load_model, read_card
    from sparseg.errors import ConfigError
    from sparseg.models.segmenter import SparseUNETR
    from sparseg.shapes import as_triple
    from sparseg.training.start import stored_config

    if model.is_file():
        roi = changes.get("roi_size")
        roi_size = None if roi is None else as_triple(roi, name="model.roi_size")
        return _Dense(
            read_monai_unetr(model, roi_size=roi_size, num_heads=changes.get("num_heads")), None, {}
        )
    net, card = load_model(model), read_card(model)
    if not isinstance(net, SparseUNETR):
        raise ConfigError(
            "the network to be made sparse must be one of ours or MONAI's UNETR",
            received=type(net).__name__,
            remedy="give a model trained with e.g. --preset vit_tiny_p8 --set model.pruning_stages=[]",
            where=model,
            code="sparsify-source",
        )
    base: dict[str, Any] = {}
    run = _run_of(model)
    if run is not None:
        stored = stored_config(run).model_dump()
        base = {name: stored[name] for name in (*_KEPT, *(["fold"] if with_fold else []))}
    return _Dense(net, card, base | {"preprocess": card.preprocess.model_dump(), "overlap": card.overlap})


def _card(model: Path, dense: _Dense, found: Dataset, settings: TrainConfig) -> ModelCard:
    """The card of the dense model; foreign weights get the dataset's meaning, if the sizes allow it.

    Raises:
        ConfigError: other labels, regions or channels.
    """
    from sparseg.checkpoints.card import ModelCard
    from sparseg.errors import ConfigError

    parts = {name: getattr(found, name) for name in ("labels", "regions", "channels")}
    config = dense.net.config
    if dense.card is None:
        before: object = f"{config.in_channels} channels, {config.num_classes} outputs"
        now: object = f"{len(found.channels)} channels, {found.num_classes} outputs"
    else:
        differing = [name for name, value in parts.items() if getattr(dense.card, name) != value]
        first = (differing or ["labels"])[0]
        before, now = getattr(dense.card, first), parts[first]
    if before != now:
        raise ConfigError(
            f"the dataset must have the labels and channels of the dense model: {before}",
            received=now,
            remedy="correct the dataset's description, or train anew",
            where=model,
            code="sparsify-meaning",
        )
    if dense.card is not None:
        return dense.card
    assert settings.preprocess is not None  # refused before
    return ModelCard(model=config, preprocess=settings.preprocess, **parts)


def _describe(model: Path, card: ModelCard, settings: TrainConfig) -> str:
    dice = card.provenance.validation_dice
    score = "" if dice is None else f", validation Dice {dice:.3f}"
    stages = ", ".join(map(str, settings.model["pruning_stages"]))
    return f"dense model {model}{score}; the new one prunes before block {stages}"
