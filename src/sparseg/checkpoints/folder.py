"""Writing and reading model folders: complete or not at all, and never partially loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sparseg.checkpoints.card import ModelCard
from sparseg.config import parse_config
from sparseg.errors import CheckpointError, ConfigError, NumericsError
from sparseg.models.build import segmenter_from_config
from sparseg.models.network import Network

WEIGHTS = "weights.safetensors"
CARD = "model.json"


def save_model(folder: Path, net: nn.Module, card: ModelCard, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder under a temporary name and put it in place of `folder` at the end.

    Args:
        folder: Target; replaced if it exists.
        net: The network that `card.model` describes.
        card: Its card; `weights_sha256` is filled in here.
        dtype: Type of the stored floating-point weights.

    Raises:
        NumericsError: a weight is not finite (in `dtype`); nothing is written.
        CheckpointError: the disk is full; what was stored before stays.
    """
    tensors = {name: _stored(name, value, dtype) for name, value in net.state_dict().items()}
    folder = folder.absolute()
    fresh, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)  # a save was cut off between its two renames: this is the last good model
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        save_file(tensors, fresh / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(
            "the model folder must be writable",
            received=" ".join(str(error).split()),
            remedy="check that the disk has free space",
            where=folder,
        ) from None
    card = card.model_copy(update={"weights_sha256": _sha256(fresh / WEIGHTS)})
    (fresh / CARD).write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    # Safetensors makes a file that only its owner can read; models are shared.
    (fresh / WEIGHTS).chmod(stat.S_IMODE((fresh / CARD).stat().st_mode))
    for file in (fresh / WEIGHTS, fresh / CARD):
        _flush(file)
    # A folder cannot be replaced in one step; between the two renames the old one is found under its side
    # name.
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find_model(folder: Path) -> Path:
    """The model folder meant by `folder`: itself, or `best` (then `last`) inside a training run.

    Raises:
        CheckpointError: no model there.
    """
    root = folder.absolute()  # "." has no name to put a side name beside
    for candidate in (root, root / "best", root / "last"):
        for path in (candidate, candidate.parent / f".{candidate.name}.old"):
            if (path / CARD).is_file():
                return path
    raise CheckpointError(
        f"a model folder holds {CARD} and {WEIGHTS}",
        received="neither here nor in best/ or last/",
        remedy="give the folder that `sparseg train --out` wrote",
        where=folder,
    )


def read_card(folder: Path) -> ModelCard:
    """Read `model.json` of a model folder or run.

    Raises:
        CheckpointError: no model there, or its card is damaged or of another format.
    """
    path = find_model(folder) / CARD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return parse_config(ModelCard, values if isinstance(values, dict) else {}, where=path)
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise CheckpointError(
            "a model card must be complete and valid",
            received=" ".join(str(error).split()),
            where=path,
            remedy="copy the model folder again; of a newer sparseg: update",
        ) from None


def load_model(folder: str | Path) -> Network:
    """Load a trained model, in evaluation mode, float32, on the CPU.

    Args:
        folder: A model folder, or a training run (its best model).

    Raises:
        CheckpointError: no model there; weights that are damaged, do not fit the card, or do not fit the
            network.
    """
    path = find_model(Path(folder))
    card = read_card(path)
    weights = path / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(
            f"a model folder must hold {WEIGHTS}", where=path, remedy="copy the whole folder"
        )
    if card.weights_sha256 and _sha256(weights) != card.weights_sha256:
        raise CheckpointError(
            "the weights must be those the model card was written for (SHA-256)",
            received="another hash: the file is damaged or was exchanged",
            remedy="copy the model folder again",
            where=weights,
        )
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            "the weights must be readable",
            received=" ".join(str(error).split()),
            where=weights,
            remedy="copy the model folder again",
        ) from None
    net = segmenter_from_config(card.model)
    load_strict(net, {name: value.float() for name, value in tensors.items()}, where=weights)
    return net.eval()


def load_strict(net: nn.Module, tensors: dict[str, torch.Tensor], *, where: object) -> None:
    """Load exactly the tensors the network has: none missing, none left over, all of the right shape and
    finite.

    Raises:
        CheckpointError: names the tensors that do not fit.
    """
    wanted = net.state_dict()
    problems = [f"missing {name}" for name in wanted.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {tuple(value.shape)}, needs {tuple(wanted[name].shape)}"
        for name, value in tensors.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    problems += [
        f"{name} is not finite" for name, value in tensors.items() if not bool(value.isfinite().all())
    ]
    if problems:
        shown = ", ".join(sorted(problems)[:6]) + (
            f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        )
        raise CheckpointError(
            "the weights must fit the network exactly",
            received=shown,
            where=where,
            remedy="use weights and card of one model",
        )
    net.load_state_dict(tensors)


def _stored(name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    value = value.detach().cpu()
    value = value.to(dtype) if value.is_floating_point() else value
    if not bool(value.isfinite().all()):
        raise NumericsError(
            "weights must be finite to be stored", received=f"{name} is not", remedy="lower the learning rate"
        )
    return value.contiguous()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Force a file or folder entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
