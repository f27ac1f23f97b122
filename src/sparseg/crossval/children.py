"""Training runs as child processes: a few at once, each with its device, signals passed on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn, Protocol

from sparseg.crossval.status import FoldStatus, last_error, read_status
from sparseg.errors import ConfigError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_STOPPED_CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_TICK_S, _STATUS_S = 0.1, 2.0
_BUSY = "another process is training this fold"


class End(Enum):
    """What became of a fold."""

    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    WAITING = "not started"


@dataclass(frozen=True)
class FoldJob:
    """One training run to start.

    Attributes:
        fold: Its number.
        command: Program and arguments.
        run: Its run folder.
        log: File that takes what it prints; what is there stays.
    """

    fold: int
    command: tuple[str, ...]
    run: Path
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How a fold ended, and the last error line of one that failed."""

    fold: int
    end: End
    message: str = ""


class FoldMonitor(Protocol):
    """What a caller may watch; the command line prints one line per fold through it."""

    def on_status(self, status: FoldStatus) -> None:
        """Now and then while a fold is trained."""

    def on_end(self, outcome: Outcome) -> None:
        """After a fold ended."""


def run_folds(
    jobs: Sequence[FoldJob], slots: Sequence[Mapping[str, str]], monitor: FoldMonitor
) -> tuple[list[Outcome], int | None]:
    """Run jobs, as many at once as there are slots; a failed one does not stop the others.

    SIGINT, SIGTERM and SIGUSR1 are passed on to the children, which save and stop; no more are started then.

    Args:
        jobs: In the order to start them in.
        slots: Changes to the environment of the child that runs in each, such as its GPU.
        monitor: Watches.

    Returns:
        One outcome per job in that order, and the first signal that came or None.
    """
    waiting, free = list(jobs), list(slots)
    running: list[_Child] = []
    ends: dict[int, Outcome] = {}
    with _Signals() as signals:
        next_look = time.monotonic()
        while running or (waiting and signals.first is None):
            while waiting and free and signals.first is None:
                running.append(_Child(waiting.pop(0), free.pop(0)))
            for number in signals.take():
                for child in running:
                    child.send(number)
            for child in [child for child in running if child.has_ended()]:
                running.remove(child)
                free.append(child.slot)
                ends[child.job.fold] = child.outcome(interrupted=signals.first is not None)
                monitor.on_end(ends[child.job.fold])
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _STATUS_S
                for child in running:
                    monitor.on_status(read_status(child.job.run, child.job.fold))
            time.sleep(_TICK_S)
    return [ends.get(job.fold, Outcome(job.fold, End.WAITING)) for job in jobs], signals.first


def become(job: FoldJob) -> NoReturn:
    """Replace this process by a job's: under a scheduler, signals then reach the training once.

    Raises:
        ConfigError: another process is training this fold.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(job.log.with_suffix(".lock"))
    if lock is None:
        raise ConfigError(
            "a fold may be trained by one process at a time",
            received=_BUSY,
            remedy="wait for it, or stop it",
            where=job.run,
            code="fold-busy",
        )
    os.set_inheritable(lock, True)
    sys.stdout.flush()
    os.execv(job.command[0], job.command)


def train_command(
    dataset: Path, run: Path, fold: int, *, config: Path, splits: Path, resume: bool, more: Sequence[str] = ()
) -> tuple[str, ...]:
    """The command line that trains a fold, or goes on with it.

    Args:
        dataset: Dataset folder or list.
        run: Run folder of the fold.
        fold: Its number.
        config: Settings of all folds.
        splits: Folds.
        resume: Go on from its last state, with the settings it was started with.
        more: Further arguments, the same for a start and a resumption.
    """
    if resume:
        options = ["--resume"]
    else:
        options = ["--fold", str(fold), "--splits", str(splits), "--config", str(config)]
    return (
        sys.executable,
        *("-m", "sparseg", "train", str(dataset), "--out", str(run)),
        *options,
        *more,
    )


def make_slots(jobs: int, devices: Sequence[str] = ()) -> list[dict[str, str]]:
    """Environments of `jobs` children at once: their GPU in turn, and their share of the processors.

    Args:
        jobs: Children at once.
        devices: GPUs as CUDA_VISIBLE_DEVICES names them; empty leaves the environment's choice.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    slots: list[dict[str, str]] = []
    for number in range(jobs):
        slot = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            slot["OMP_NUM_THREADS"] = str(threads)
        slots.append(slot)
    return slots


class _Child:
    """A running job; one that another process is at work on ends at once, as failed."""

    def __init__(self, job: FoldJob, slot: Mapping[str, str]) -> None:
        self.job, self.slot = job, slot
        self.process: subprocess.Popen[bytes] | None = None
        job.log.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(job.log.with_suffix(".lock"))
        if lock is None:
            return
        try:
            with job.log.open("ab") as output:
                self.process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **slot},
                    # A terminal's Ctrl-C goes to all processes of its session; a second one would not save.
                    start_new_session=True,
                    # The lock lives as long as the child, even where its parent is killed.
                    pass_fds=(lock,) if fcntl is not None else (),
                )
        finally:
            os.close(lock)

    def send(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def outcome(self, *, interrupted: bool) -> Outcome:
        fold = self.job.fold
        if self.process is None:
            return Outcome(fold, End.FAILED, _BUSY)
        code = self.process.returncode
        if read_status(self.job.run, fold).finished and (code == 0 or interrupted):
            return Outcome(fold, End.DONE)
        if code == 0 or interrupted or code in _STOPPED_CODES:
            return Outcome(fold, End.STOPPED)
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; is the memory enough?" if -code == signal.SIGKILL else ""
            return Outcome(fold, End.FAILED, f"killed by {name}{hint}")
        return Outcome(fold, End.FAILED, last_error(self.job.log) or f"exit code {code}")


@dataclass
class _Signals:
    """Collects signals to pass on; the handlers that were there come back at the end."""

    first: int | None = None
    _pending: list[int] = field(default_factory=list)

    def __enter__(self) -> _Signals:
        self._old = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.first = self.first or number
        self._pending.append(number)

    def take(self) -> list[int]:
        """Signals since the last call."""
        taken, self._pending = self._pending, []
        return taken


def _lock(path: Path) -> int | None:
    """Handle of a lock file, or None while another process holds the lock."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is None:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        pass  # a file system without locks: nothing to hold
    return handle
