"""What a run needs to go on exactly where it stopped, written atomically."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from sparseg.config import Config
from sparseg.errors import CheckpointError

STATE = "state.pt"


class Progress(Config):
    """How far a run has come.

    Attributes:
        step: Optimiser steps done.
        minutes: Wall-clock minutes of training so far, over all resumptions.
        best_dice: Best mean validation Dice so far.
        best_step: Step it was reached at.
    """

    step: int = Field(default=0, ge=0)
    minutes: float = Field(default=0.0, ge=0)
    best_dice: float | None = None
    best_step: int = 0


def save_state(
    folder: Path,
    progress: Progress,
    model: dict[str, Any],
    optimizer: dict[str, Any],
    scaler: dict[str, Any] | None,
) -> None:
    """Write the state of a run: temporary file, flush to disk, rename.

    Raises:
        CheckpointError: the disk is full; the state stored before stays.
    """
    state = {
        "progress": progress.model_dump(),
        "model": model,
        "optimizer": optimizer,
        "scaler": scaler,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    temporary = folder / f".{STATE}.new"
    try:
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:  # torch's name for a write that fell short
        raise CheckpointError(
            "the run folder must be writable",
            received=str(error),
            remedy="check that the disk has free space",
            where=folder,
        ) from None
    temporary.replace(folder / STATE)


def load_state(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """Read what `save_state` wrote and restore the random generators.

    Raises:
        CheckpointError: nothing to resume, or the file is damaged.
    """
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(
            f"a run to resume must hold {STATE}", where=folder, remedy="start it without --resume first"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(
            "the state of a run must be readable",
            received=str(error),
            where=path,
            remedy="start the run again",
        ) from None
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return Progress(**state["progress"]), state
