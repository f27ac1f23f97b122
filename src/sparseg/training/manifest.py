"""`manifest.json`: what a run was made from, enough to repeat it."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sparseg.checkpoints.card import ModelCard
from sparseg.config import to_yaml
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.fingerprint import fingerprint_key
from sparseg.errors import ConfigError
from sparseg.training.config import TrainConfig
from sparseg.volumes.atomic import write_bytes_atomically

FILE = "manifest.json"
_PACKAGES = ("sparseg", "torch", "monai", "numpy", "accelerate", "blosc2", "nibabel", "SimpleITK", "pydicom")


def write_manifest(
    run: Path, dataset: Dataset, facts: Sequence[CaseFacts], config: TrainConfig, *, num_processes: int
) -> None:
    """Write `manifest.json` into a run folder.

    Case names are those of the dataset; each stands beside the hash of its voxels, labels and place.
    """
    content: dict[str, Any] = {
        "format": 1,
        "command": sys.argv,
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "processes": num_processes,
        "seed": config.seed,
        "config_sha256": hashlib.sha256(to_yaml(config).encode()).hexdigest(),
        "dataset": {
            "name": dataset.name,
            "layout": dataset.layout,
            **meaning_of(dataset),
            "fingerprint": fingerprint_key(facts),
            "cases": cases_of(dataset, facts),
        },
    }
    write_bytes_atomically(run / FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_manifest(run: Path) -> dict[str, Any]:
    """Content of a run's `manifest.json`; nothing without one.

    Raises:
        ConfigError: it is damaged.
    """
    path = run / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the manifest of a run must be readable JSON",
            received=str(error),
            remedy="restore the file, or train anew in another --out",
            where=path,
            code="manifest",
        ) from None
    return content if isinstance(content, dict) else {}


def meaning_of(described: Dataset | ModelCard) -> dict[str, Any]:
    """What inputs and outputs stand for, as JSON: channels, labels by id, regions in output order."""
    return {
        "channels": list(described.channels),
        "labels": {str(number): described.labels[number] for number in sorted(described.labels)},
        "regions": {name: list(ids) for name, ids in described.regions.items()},
    }


def cases_of(dataset: Dataset, facts: Sequence[CaseFacts]) -> dict[str, str]:
    """Name of each case -> hash of its voxels, labels and place, whatever its files are called."""
    return {case.name: fact.content_key for case, fact in zip(dataset.training, facts, strict=True)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree this code runs from; None for an installed package."""
    source = Path(__file__).resolve().parents[3]
    if not (source / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
