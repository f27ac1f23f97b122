"""What a run needs to go on exactly where it stopped: written atomically, the last few kept, each verified.

A state needs no random generators: every step seeds them from the run's seed, the step and the rank.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from sparseg.config import Config
from sparseg.errors import CheckpointError, NumericsError, VolumeError
from sparseg.training.faults import is_worker_death
from sparseg.volumes.atomic import write_bytes_atomically

logger = logging.getLogger("sparseg")
FOLDER = "state"
_NAME = re.compile(r"step_(\d+)\.json")


class Progress(Config):
    """How far a run has come.

    Attributes:
        step: Optimiser steps done.
        crops: Crops used by all processes; the number of the next one.
        minutes: Wall-clock minutes of training so far, over all resumptions.
        skipped: Steps skipped because a loss or gradient was not finite.
        best_dice: Best mean validation Dice so far.
        best_step: Step it was reached at.
        validations_since_best: Validations since then.
        finished: Whether training is done: the whole schedule, or what patience left of it.
        stale_share: Share of the schedule that was done when patience ended the run; None if it did not.
    """

    step: int = Field(default=0, ge=0)
    crops: int = Field(default=0, ge=0)
    minutes: float = Field(default=0.0, ge=0)
    skipped: int = Field(default=0, ge=0)
    best_dice: float | None = None
    best_step: int = 0
    validations_since_best: int = Field(default=0, ge=0)
    finished: bool = False
    stale_share: float | None = None

    def within(self, share: float) -> Progress:
        """The same progress in a schedule of another length, of which it is `share`.

        A run that patience ended goes on, with new patience, where the schedule became longer.
        """
        if self.stale_share is None:
            return self.model_copy(update={"finished": share >= 1})
        if share >= self.stale_share:
            return self
        return self.model_copy(update={"finished": False, "stale_share": None, "validations_since_best": 0})


@dataclass(frozen=True)
class State:
    """Progress, and the tensors of model, optimiser, loss scaler and averaged weights (None where unused)."""

    progress: Progress
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None = None
    ema: dict[str, Any] | None = None


def has_state(run: Path) -> bool:
    """Whether a run folder holds the state of a run."""
    return bool(_records(run))


def read_progress(run: Path) -> Progress | None:
    """How far a run has come by its newest record; None if there is none. Reads no tensors."""
    for _, record in _records(run):
        with suppress(OSError, ValueError, KeyError):
            return Progress(**json.loads(record.read_text(encoding="utf-8"))["progress"])
    return None


def save_state(run: Path, state: State, *, keep: int = 2) -> None:
    """Write a state beside the earlier ones, then delete all but the newest `keep`.

    The record, which vouches for the tensors with their hash, is written last: a state without a record does
    not exist.

    Raises:
        CheckpointError: the disk is full or refuses; the states stored before stay.
        NumericsError: a weight is not finite; the states stored before stay.
    """
    _require_finite(state.model, run)
    folder = run / FOLDER
    name = f"step_{state.progress.step:08d}"
    content = {"model": state.model, "optimizer": state.optimizer, "scaler": state.scaler, "ema": state.ema}
    temporary = folder / f".{name}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        digest = _sha256(temporary)
        temporary.replace(folder / f"{name}.pt")
        record = {"progress": state.progress.model_dump(), "sha256": digest}
        write_bytes_atomically(folder / f"{name}.json", json.dumps(record).encode())
    except (RuntimeError, OSError, VolumeError) as error:  # torch calls a short write a RuntimeError
        if is_worker_death(error):
            raise
        raise CheckpointError(
            "the run folder must be writable",
            received=str(error),
            remedy="check that the disk has free space; the state stored before is intact",
            where=folder,
            code="state-write",
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    _delete_old(folder, keep)


def load_state(run: Path) -> State:
    """Read the newest state that is whole; a damaged one is named in the log and the one before is taken.

    Raises:
        CheckpointError: nothing to resume, or every state is damaged.
    """
    records = _records(run)
    if not records:
        raise CheckpointError(
            "a run to resume must hold a state",
            received="none",
            where=run / FOLDER,
            remedy="start it without --resume first",
            code="state-none",
        )
    for number, record in records:
        try:
            return _read(record)
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("the state of step %d is damaged (%s); the one before is taken", number, error)
    raise CheckpointError(
        "the state of a run must be readable",
        received=f"{len(records)} damaged",
        where=run / FOLDER,
        remedy="start the run again",
        code="state-damaged",
    )


def _require_finite(weights: Mapping[str, Any], run: Path) -> None:
    for name, value in weights.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise NumericsError(
                "the weights to store must be finite",
                received=f"{name} with a value that is not",
                remedy="start anew with a lower optimizer.lr or in fp32; what was stored before is intact",
                where=run,
                code="weights-not-finite",
            )


def _read(record: Path) -> State:
    content = json.loads(record.read_text(encoding="utf-8"))
    tensors = record.with_suffix(".pt")
    if _sha256(tensors) != content["sha256"]:
        raise ValueError("other bytes than were written")
    values = torch.load(tensors, map_location="cpu", weights_only=True)
    return State(Progress(**content["progress"]), **values)


def _records(run: Path) -> list[tuple[int, Path]]:
    """(step, record) of all states, newest first."""
    folder = run / FOLDER
    found = folder.glob("step_*.json") if folder.is_dir() else ()
    numbered = [(int(match[1]), path) for path in found if (match := _NAME.fullmatch(path.name))]
    return sorted(numbered, reverse=True)


def _delete_old(folder: Path, keep: int) -> None:
    for _, record in _records(folder.parent)[keep:]:
        # The record first: tensors without it are no state.
        for path in (record, record.with_suffix(".pt")):
            path.unlink(missing_ok=True)
    # What a killed process left half-written, or without its record.
    known = {path for _, record in _records(folder.parent) for path in (record, record.with_suffix(".pt"))}
    for stray in folder.iterdir():
        if stray not in known:
            stray.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
