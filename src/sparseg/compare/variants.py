"""Which models are compared: known names, lists of them, and rows that a file describes.

Every row is a whole set of training settings: those common to all with the row's own laid over them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseg.config import load_yaml, merge, parse_config
from sparseg.errors import ConfigError
from sparseg.models.baselines import BASELINES, baseline_options
from sparseg.models.config import SegmenterConfig
from sparseg.models.presets import PRESETS
from sparseg.models.presets import preset as preset_values
from sparseg.training.config import TrainConfig

PEER = "peer_"
_PEERS = tuple(name for name in PRESETS if name.startswith(PEER))
LISTS: dict[str, tuple[str, ...]] = {
    "paper": (
        *("sparse", "scored", "published", "dense_p8", "dense_p16", "random", "stride"),
        *("evit", "evit_mask", "dynamicvit", "dynamicvit_mask", "mask_token", "last_layer"),
    ),
    "method": (
        *(
            "sparse",
            "scored",
            "image",
            "published",
            "edge",
            "dense_p8",
            "random",
            "stride",
            "intensity",
            "entropy",
        ),
        *("mask_token", "last_layer", "nearest", "tome"),
    ),
    "beyond": (
        *("sparse", "image", "first", "linear", "fast", "fast_elastic", "one_token"),
        *("dense_p8", "dense_p8_half", "dense_p16"),
    ),
    "peers": (
        *("sparse", "dense_p8", "dense_p16"),
        *(name for name in _PEERS if not name.endswith("_tiny")),
    ),
    "peers_tiny": (
        *("sparse", "dense_p8", "dense_p16"),
        *(name for name in _PEERS if name.endswith("_tiny")),
    ),
}
_DENSE = ("dense_p8", "dense_p8_half", "dense_p16")
# Scorings that ask what blocks have made of the tokens.
_AFTER_BLOCKS = ("predictor", "gates", "class_attention")
_PARTS = ("preset", "model", "train")
# A name becomes a folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")

# Name -> what a file says of the row; None for a name that the package knows.
Definitions = dict[str, dict[str, Any] | None]


def parse_variants(text: str) -> Definitions:
    """The rows meant by `--variants`: lists, known names and YAML files, separated by commas.

    Raises:
        ConfigError: an unknown name (the message lists all), a file that is not `name: {preset, model,
            train}`, or two rows of one name.
    """
    found: Definitions = {}
    for item in (part.strip() for part in text.split(",")):
        if Path(item).suffix in (".yaml", ".yml"):
            rows = _read_file(Path(item))
            _require_new(set(rows) & (found.keys() | BASELINES.keys() | set(_PEERS)), item)
            found.update(rows)
        elif item in LISTS:
            found.update(dict.fromkeys(LISTS[item]))
        elif item in BASELINES or item in _PEERS:
            found[item] = None
        else:
            raise ConfigError(
                f"a variant must be a list ({', '.join(LISTS)}), a name ({', '.join((*BASELINES, *_PEERS))}) "
                "or a .yaml file",
                received=repr(item),
                remedy="e.g. --variants paper, or --variants sparse,dense_p8,mine.yaml",
                where="--variants",
            )
    return found


def is_of_a_list(text: str, name: str) -> bool:
    """Whether a name is only there as part of a list, so that a comparison can do without it."""
    return name not in [part.strip() for part in text.split(",")]


def settings_of(name: str, definition: Mapping[str, Any] | None, base: Mapping[str, Any]) -> TrainConfig:
    """Settings of a row's training runs.

    Args:
        name: The row.
        definition: What a file says of it; None for a known name.
        base: Settings common to all rows, without defaults.

    Raises:
        ConfigError: settings that are unknown or do not go together.
    """
    if definition is not None:
        values = _from_file(definition, base)
    elif name.startswith(PEER):
        values = _with_preset(base, name)
    else:
        values = _baseline(name, base)
    where = f"variant {name}"
    parse_config(TrainConfig, values, where=where)  # what is read below is of the right kind
    return parse_config(TrainConfig, _without_idle_losses(values), where=where)


def base_preset(base: Mapping[str, Any]) -> str:
    """The named model of the common settings."""
    return str(base.get("preset", TrainConfig.model_fields["preset"].default))


def base_model(base: Mapping[str, Any]) -> SegmenterConfig:
    """The network of the common settings, before any row changes it."""
    values = {**preset_values(base_preset(base)), **base.get("model", {})}
    return parse_config(SegmenterConfig, values, where="model")


def _baseline(name: str, base: Mapping[str, Any]) -> dict[str, Any]:
    model = base_model(base)
    if name not in _DENSE and not model.pruning_stages:
        raise ConfigError(
            "the settings common to all rows must be those of a model with pruning stages",
            received="pruning_stages: []",
            remedy="set model.pruning_stages in the recipe, or compare dense models only",
            where=f"variant {name}",
        )
    values = merge(base, baseline_options(name, model if model.pruning_stages else None))
    stages = values["model"].get("pruning_stages", model.pruning_stages)
    if 0 in stages and values["model"].get("scoring") in _AFTER_BLOCKS:
        raise ConfigError(
            "scores of tokens need blocks before the first pruning stage",
            received=f"pruning_stages: {list(stages)}, scoring: {values['model']['scoring']}",
            remedy="take a recipe with preset vit_tiny_p8, or none: the comparison then plans its own",
            where=f"variant {name}",
        )
    return values


def _from_file(definition: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    preset = definition.get("preset")
    values = dict(base) if preset in (None, base_preset(base)) else _with_preset(base, str(preset))
    return merge(merge(values, {"model": definition.get("model") or {}}), definition.get("train") or {})


def _with_preset(base: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Another network; of the recipe's model it takes the window, so that the crops are the same."""
    return {**base, "preset": preset, "model": {"roi_size": list(base_model(base).roi_size)}}


def _without_idle_losses(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's losses on scores are ours: off in rivals' rows, and where nothing could learn of them."""
    scoring = values.get("model", {}).get("scoring", SegmenterConfig.model_fields["scoring"].default)
    idle = {} if scoring in ("predictor", "image") else {"score_weight": 0.0}
    idle |= {} if scoring == "gates" else {"ratio_weight": 0.0}
    used = {key: value for key, value in idle.items() if values.get("selection", {}).get(key)}
    return merge(values, {"selection": used}) if used else values


def _read_file(path: Path) -> Definitions:
    rows = load_yaml(path)
    for name, row in rows.items():
        if not _is_row(row) or not _NAME.fullmatch(str(name)):
            raise ConfigError(
                f"a row must read name: {{{', '.join(_PARTS)}}}, each optional, its name of letters, digits "
                "and _ . + -, its preset a name, model and train mappings of settings",
                received=f"{name}: {row}",
                remedy="see docs/how-to/compare.md",
                where=path,
            )
    return {str(name): row for name, row in rows.items()}


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not set(row) <= set(_PARTS):
        return False
    kinds = {"preset": str, "model": dict, "train": dict}
    return all(value is None or isinstance(value, kinds[part]) for part, value in row.items())


def _require_new(doubled: set[str], where: object) -> None:
    if doubled:
        raise ConfigError(
            "every variant must have a name of its own",
            received=", ".join(sorted(doubled)),
            remedy="rename it; names that the package knows keep their meaning",
            where=where,
        )
