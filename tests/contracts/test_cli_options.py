"""The commands and their options, frozen: a script of a user depends on every name and default here."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import Parameter
from pathlib import Path
from typing import Any

import cyclopts

from sparseg.cli.main import app

REQUIRED = "required"
GROUP = ("*",)  # options that share a dataclass; each is listed beside it under its own name
OPTIONS: dict[str, dict[str, Any]] = {
    "train": {
        "DATASET": REQUIRED,
        "--out": REQUIRED,
        "--preset": None,
        "--config": None,
        "--set": (),
        "--max-steps": None,
        "--max-minutes": None,
        "--until": None,
        "--extend": None,
        "--fold": None,
        "--splits": None,
        "--cache": None,
        "--skip-bad": False,
        "--init": None,
        "--seed": None,
        "--deterministic": False,
        "--resume": False,
    },
    "cv": {
        "DATASET": REQUIRED,
        "--out": REQUIRED,
        "--folds": None,
        "--splits": None,
        "--preset": None,
        "--config": None,
        "--set": (),
        "--max-steps": None,
        "--max-minutes": None,
        "--seed": None,
        "--jobs": None,
        "--device-list": "",
        "--slurm": None,
        "--slurm-script": None,
        "--fold": None,
        "--collect": False,
        "--device": "auto",
        "--cache": None,
        "--skip-bad": False,
    },
    "compare": {
        "DATASET": REQUIRED,
        "--out": REQUIRED,
        "--variants": None,
        "--seeds": None,
        "--folds": None,
        "--max-steps": None,
        "--max-minutes": None,
        "--recipe": None,
        "--set": (),
        "--splits": None,
        "--jobs": None,
        "--device-list": "",
        "--collect": False,
        "--no-speed": False,
        "--device": "auto",
        "--cache": None,
        "--skip-bad": False,
    },
    "pretrain": {
        "DATASET": REQUIRED,
        "--out": REQUIRED,
        "--preset": None,
        "--config": None,
        "--set": (),
        "--max-steps": None,
        "--max-minutes": None,
        "--mask-ratio": None,
        "--cache": None,
        "--seed": None,
        "--skip-bad": False,
        "--resume": False,
    },
    "sparsify": {
        "MODEL": REQUIRED,
        "DATASET": REQUIRED,
        "--out": REQUIRED,
        "--keep-ratio": None,
        "--config": None,
        "--set": (),
        "--max-steps": None,
        "--max-minutes": None,
        "--seed": None,
        "--splits": None,
        "--skip-bad": False,
    },
    "predict": {
        "INPUTS": REQUIRED,
        "--model": REQUIRED,
        "--out": REQUIRED,
        "--report": True,
        "--no-report": True,
        "--overlap": None,
        "--batch-size": 1,
        "--device": "auto",
        "--affine": "refuse",
        "--assume-orientation": None,
        "--nonfinite": None,
        "--series-uid": None,
        "--max-voxels": 2**31,
        "--format": "nii.gz",
        "--labelmap": False,
        "--save": (),
        "--largest-component": (),
        "--fill-holes": (),
        "--min-ml": 0.0,
        "--mirror": (),
        "--keep-empty": False,
        "--body-only": False,
        "--keep-ratio": (),
        "--deadline": None,
        "--resume": False,
        "--shard": None,
        "--ray": None,
        "--overlap-cases": None,
        "--no-overlap-cases": None,
        "--max-ram": None,
        "--max-vram": None,
        "--threads": None,
    },
    "view": {"OUT": REQUIRED, "--port": 0, "--no-browser": False},
    "evaluate": {
        "--pred": REQUIRED,
        "--ref": REQUIRED,
        "--out": None,
        "--labels": None,
        "--tolerance-mm": 2.0,
    },
    "info": {
        "PATH": REQUIRED,
        "--affine": "refuse",
        "--assume-orientation": None,
        "--nonfinite": None,
        "--series-uid": None,
    },
    "check": {
        "DATASET": REQUIRED,
        "--out": None,
        "--json": None,
        "--html": None,
        "--fix": False,
        "--to": None,
        "--workers": None,
        "--strict": False,
    },
    "plan": {
        "DATASET": REQUIRED,
        "--out": Path("plan.yaml"),
        "--device": "auto",
        "--preset": None,
        "--no-measure": False,
        "--workers": None,
        "--force": False,
    },
    "sample fetch": {"NAME": REQUIRED, "--to": REQUIRED},
    "sample task": {"NAME": REQUIRED, "--to": REQUIRED},
    "synth": {
        "LABELS": None,
        "--to": REQUIRED,
        "--image": None,
        "--phantom": False,
        "--num-cases": 10,
        "--num-test": 0,
        "--layout": "decathlon",
        "--names": None,
        "--modality": None,
        "--intensity": None,
        "--channels": None,
        "--shape": None,
        "--spacing": None,
        "--native-resolution": False,
        "--seed": None,
        "--config": None,
        "--set": (),
        "--workers": None,
    },
    "calibrate": {
        "RUN": REQUIRED,
        "DATASET": REQUIRED,
        "--keep-ratios": (0.1, 0.25, 0.5, 0.7, 1.0),
        "--max-cases": None,
        "--device": "auto",
        "--threads": None,
    },
    "model verify": {"RUN": REQUIRED, "--write": False, "--device": "cpu"},
    "cache show": {"--cache": None},
    "cache clear": {"--cache": None},
    "bench files": {
        "--preset": "vit_tiny_p8",
        "--model": None,
        "--size": "full",
        "--overlap": 0.5,
        "--json": None,
        "--pairs": 5,
        "--warmup": 1,
        "--threads": None,
    },
    "bench windows": {
        "--preset": "vit_tiny_p8",
        "--model": None,
        "--size": "half",
        "--overlap": 0.5,
        "--json": None,
        "--pairs": 5,
        "--warmup": 1,
        "--threads": None,
    },
    "bench model": {
        "--preset": "btcv",
        "--json": None,
        "--pairs": 5,
        "--warmup": 1,
        "--batch": 1,
        "--modes": ("inference", "training"),
        "--device": "cpu",
        "--threads": None,
        "--quality": None,
        "--variants": None,
        "--compile": ("none",),
    },
}


def commands(parent: cyclopts.App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, cyclopts.App]]:
    """Yield every command that does something, by its words."""
    for name in parent:
        if name.startswith("-"):
            continue
        child = parent[name]
        if child.default_command is None:
            yield from commands(child, (*path, name))
        else:
            yield " ".join((*path, name)), child


def options(command: cyclopts.App) -> dict[str, Any]:
    """Return every spelling of every option with its default."""
    found = {}
    for argument in command.assemble_argument_collection():
        if argument.names == GROUP:
            continue
        default = argument.field_info.default
        for name in argument.names:
            found[name] = REQUIRED if default is Parameter.empty else default
    return found


def test_commands_options_and_defaults() -> None:
    assert {name: options(command) for name, command in commands(app)} == OPTIONS


def test_every_option_is_explained() -> None:
    for name, command in commands(app):
        assert command.help, name
        for argument in command.assemble_argument_collection(parse_docstring=True):
            assert argument.parameter.help or argument.names == GROUP, f"{name}: {argument.names}"


def test_what_every_program_has() -> None:
    assert set(app.help_flags) == {"--help", "-h"}
    assert set(app.version_flags) == {"--version"}
