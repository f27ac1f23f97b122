"""The rivals that token sparsification is compared with, each as settings of the same network.

A name stands for what is changed in a training run: `model` are overrides of the preset, `selection` of the
training settings. Everything else (sizes, stages, keep ratio, data, schedule) is that of the run, so two
rows of a table differ in the named thing alone. docs/explanation/baselines.md has the sources.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from sparseg.errors import ConfigError
from sparseg.models.config import FAST_OPTIONS, PUBLISHED_OPTIONS, SegmenterConfig
from sparseg.models.counts import merge_ratio_like

Options = dict[str, dict[str, Any]]

_WAYS = (
    *PUBLISHED_OPTIONS,
    *("scoring", "pruned_tokens", "completion", "assembly_depth", "merging", "num_merge", "decoder"),
)
# Our defaults, spelt out: a row must not inherit a way of pruning from the preset it is laid over.
_OURS = {name: SegmenterConfig.model_fields[name].default for name in _WAYS}
_DENSE = {**_OURS, "pruning_stages": (), "keep_ratio": 1.0, "num_keep": None}
# What the papers use: Gumbel noise at temperature 1, and lambda_ratio = 2 (Rao et al., section 3.4).
_GATES = {**_OURS, "scoring": "gates", "temperature": 1.0, "noise_scale": 1.0}
_RATIO = {"ratio_weight": 2.0}
# What patches hold, as the labels say, teaches the scores besides the gradient through the tokens.
_TAUGHT = {"score_weight": 1.0, "score_target": "foreground"}
# Scores of the image let tokens leave before the first block, all in one step.
_FIRST_NAMES = ("scoring", "pruning_stages", "keep_ratio")
_FIRST = {**_OURS, "num_keep": None, **{name: FAST_OPTIONS[name] for name in _FIRST_NAMES}}
_LINEAR = {"assembly_depth": FAST_OPTIONS["assembly_depth"]}

BASELINES: dict[str, Options] = {
    "sparse": {"model": _OURS},
    "published": {"model": {**_OURS, **PUBLISHED_OPTIONS}},
    "scored": {"model": _OURS, "selection": _TAUGHT},
    "image": {"model": {**_OURS, "scoring": "image"}, "selection": _TAUGHT},
    "first": {"model": _FIRST, "selection": _TAUGHT},
    "linear": {"model": {**_FIRST, **_LINEAR}, "selection": _TAUGHT},
    "fast": {"model": {**_FIRST, **FAST_OPTIONS}, "selection": _TAUGHT},
    "fast_elastic": {
        "model": {**_FIRST, **FAST_OPTIONS},
        "selection": {**_TAUGHT, "elastic_keep": (0.04, 0.08, 0.15, 0.3)},
    },
    # The control: with one patch token left no patch learns of another one, and only the decoder is at work.
    "one_token": {
        "model": {**_FIRST, **FAST_OPTIONS, "num_keep": (1,)},
        "selection": {"elastic_keep": ()},
    },
    "edge": {"model": _OURS, "selection": {"score_weight": 0.1, "score_target": "boundary"}},
    "random": {"model": {**_OURS, "scoring": "random"}},
    "stride": {"model": {**_OURS, "scoring": "stride"}},
    "intensity": {"model": {**_OURS, "scoring": "intensity"}},
    "entropy": {"model": {**_OURS, "scoring": "entropy"}},
    "evit": {"model": {**_OURS, "scoring": "class_attention"}},
    "evit_mask": {
        "model": {
            **_OURS,
            "scoring": "class_attention",
            "pruned_tokens": "fuse",
            "completion": "mask_token",
        }
    },
    "dynamicvit": {"model": _GATES, "selection": _RATIO},
    "dynamicvit_mask": {"model": {**_GATES, "completion": "mask_token"}, "selection": _RATIO},
    "mask_token": {"model": {**_OURS, "completion": "mask_token"}},
    "last_layer": {"model": {**_OURS, "completion": "last_layer"}},
    "nearest": {"model": {**_OURS, "completion": "nearest"}},
    "tome": {"model": {**_DENSE, "merging": "tome", "keep_ratio": 0.75}},
    "dense_p8": {"model": {**_DENSE, "patch_size": 8}},
    "dense_p8_half": {"model": {**_DENSE, "patch_size": 8, "decoder": "half_resolution"}},
    "dense_p16": {"model": {**_DENSE, "patch_size": 16}},
}


def baseline_options(name: str, config: SegmenterConfig | None = None) -> Options:
    """Settings of a named rival, to be laid over those of a training run (`sparseg.config.merge`).

    Args:
        name: One of `BASELINES`.
        config: The sparse model it is compared with; token merging then gets the ratio that costs as much in
            the encoder. Without it, 0.75 per block.

    Returns:
        `{"model": overrides of the preset, "selection": overrides of the training settings}`, a copy.

    Raises:
        ConfigError: unknown name.
    """
    if name not in BASELINES:
        raise ConfigError(
            f"a baseline must be one of {', '.join(BASELINES)}",
            received=repr(name),
            remedy="choose one",
            where="baseline",
        )
    options: Options = deepcopy({"model": {}, "selection": {}, **BASELINES[name]})
    if name == "tome" and config is not None:
        options["model"]["keep_ratio"] = merge_ratio_like(config)
    return options
