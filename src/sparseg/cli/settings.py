"""Settings of training runs from plan, file, `--set` and flags, and the device to run on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparseg.datasets.dataset import Dataset
    from sparseg.datasets.facts import CaseFacts
    from sparseg.planning.plan import Plan
    from sparseg.training.config import TrainConfig


def given_flags(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def load_settings(config: Path | None) -> dict[str, Any]:
    """Content of a settings file; nothing without one."""
    from sparseg.config import load_yaml

    return {} if config is None else load_yaml(config)


def plan_for_device(
    dataset: Dataset, facts: Sequence[CaseFacts], preset: str | None, assignments: Sequence[str]
) -> Plan:
    """The plan for the device at hand; a preset set by hand is planned around."""
    import torch

    from sparseg.config import override
    from sparseg.planning.plan import make_plan

    device = "cuda" if torch.cuda.is_available() else "cpu"
    preset = preset or override({}, assignments).get("preset")
    return make_plan(dataset, facts, device=device, preset=preset, measure=False)


def combine_settings(
    values: dict[str, Any], assignments: Sequence[str], flags: dict[str, Any], *, where: Path | None
) -> TrainConfig:
    """Defaults, then the file or plan, then --set, then flags.

    Raises:
        ConfigError: an unknown setting, or one out of range.
    """
    from sparseg.config import merge, override, parse_config
    from sparseg.models.network import parse_network
    from sparseg.models.presets import preset as find_preset
    from sparseg.training.config import TrainConfig

    settings = parse_config(TrainConfig, merge(override(values, assignments), flags), where=where or "")
    # Checked here too, where the file that holds a wrong model setting is known.
    place = f"{where}: model" if where else "model"
    parse_network({**find_preset(settings.preset), **settings.model}, where=place)
    return settings


def choose_device(wanted: str) -> str:
    """The device's name; auto takes a GPU if there is one.

    Raises:
        ConfigError: it is not there.
    """
    import torch

    from sparseg.errors import ConfigError

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[wanted]:
        raise ConfigError(
            "the device must be there", received=wanted, remedy="use --device cpu", where="--device"
        )
    return wanted
