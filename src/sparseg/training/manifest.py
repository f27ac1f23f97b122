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

from sparseg.config import to_yaml
from sparseg.datasets.dataset import Dataset
from sparseg.datasets.facts import CaseFacts
from sparseg.datasets.fingerprint import fingerprint_key
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
            "fingerprint": fingerprint_key(facts),
            "cases": {
                case.name: fact.content_key for case, fact in zip(dataset.training, facts, strict=True)
            },
        },
    }
    write_bytes_atomically(run / FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


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
