"""Who works on what in a folder that several processes share, on one machine or many.

A claim is a small file beside the rows that says which process made it. It counts while that process lives;
one that is left over is taken over. All of it happens under one lock, so that no two processes ever do.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from filelock import FileLock

from sparseg.errors import InputError

SUFFIX = ".claim"
HEARTBEAT_S = 60.0
SILENT_S = 600.0
_RUN = ".run-"  # no case is called so: names of cases never begin with a dot
_LOCK = ".lock"
_CLOCK_STEP_S = 2.0


@dataclass(frozen=True)
class Owner:
    """The process behind a claim.

    Attributes:
        pid: Its number.
        host: Its machine, and where it has one the space that its number is valid in.
        started: When it started, in seconds since 1970.
        token: Sets this claim apart from all others.
        mode: `alone`, `shard i/n` or `resume`.
        settings_sha256: Key of its run.
    """

    pid: int
    host: str
    started: float
    token: str
    mode: str = "alone"
    settings_sha256: str = ""


def this_process(mode: str = "alone", settings_sha256: str = "") -> Owner:
    """The owner of this process's claims."""
    started = float(psutil.Process().create_time())
    return Owner(os.getpid(), _host(), started, uuid.uuid4().hex, mode, settings_sha256)


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold the one lock of a folder, alone among all processes and threads; not to be nested.

    Yields:
        The lock's file.

    Raises:
        OSError: the folder cannot be written to, or its file system has no locks.
    """
    path = folder / _LOCK
    with FileLock(path, poll_interval=0.005):
        yield path


class Claims:
    """The claims of one process in one folder, given back when the context closes.

    Args:
        folder: Where the files are; it exists.
        owner: This process.
    """

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.folder = folder
        self.owner = owner
        self._content = json.dumps(asdict(owner)).encode()
        self._held: set[str] = set()
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="sparseg-claims", daemon=True)

    def __enter__(self) -> Claims:
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._heart.join()
        with suppress(OSError), locked(self.folder) as lock:
            self._remove_all()
            if not any(self.folder.glob(f"{_RUN}*{SUFFIX}")):
                lock.unlink()  # whoever waits for it sees that it is gone and makes a new one
        # Without the lock, which a disk may refuse, they must go all the same: this process lives on.
        self._remove_all()

    def enter_run(self, when_alone: Callable[[], None] = lambda: None) -> None:
        """Say that this process works here; not beside a run that it would disturb.

        Args:
            when_alone: Called under the lock if no other process is here: what killed ones left can go.

        Raises:
            InputError: another run is at work that does not share the folder with this one.
            OSError: the folder cannot be written to.
        """
        with locked(self.folder) as lock:
            others = self._living_runs(_now(lock))
            for other in others:
                _require_shareable(self.owner, other, self.folder.parent)
            if not others:
                when_alone()
            self._create(f"{_RUN}{self.owner.token}")

    def take(self, case: str) -> bool:
        """Claim a case; False if a living process has it.

        Raises:
            OSError: the folder cannot be written to.
        """
        with locked(self.folder) as lock:
            path = self._path(case)
            if os.path.lexists(path):
                other = read_claim(path)
                # Claims are written under the lock: an incomplete one is what a killed process left.
                if other is not None and not is_stale(path, other, _now(lock)):
                    return False
                path.unlink(missing_ok=True)
            self._create(case)
        return True

    def drop(self, case: str) -> None:
        """Give a claim back; nothing if another process has taken it over."""
        with suppress(OSError), locked(self.folder):
            self._remove_own(case)

    def beat(self) -> None:
        """Show other machines that this process lives."""
        for name in tuple(self._held):
            with suppress(OSError):
                os.utime(self._path(name))

    def _living_runs(self, now: float) -> list[Owner]:
        living = []
        for path in self.folder.glob(f"{_RUN}*{SUFFIX}"):
            other = read_claim(path)
            if other is None or is_stale(path, other, now):
                path.unlink(missing_ok=True)
            else:
                living.append(other)
        return living

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _create(self, name: str) -> None:
        handle = os.open(self._path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self._content)
        except OSError:
            self._path(name).unlink(missing_ok=True)
            raise
        self._held.add(name)

    def _remove_own(self, name: str) -> None:
        self._held.discard(name)
        if read_claim(self._path(name)) == self.owner:
            self._path(name).unlink(missing_ok=True)

    def _remove_all(self) -> None:
        for name in tuple(self._held):
            with suppress(OSError):
                self._remove_own(name)

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            self.beat()


def read_claim(path: Path) -> Owner | None:
    """Who made a claim; None if it is not complete."""
    try:
        content: Any = json.loads(path.read_bytes())
        return Owner(**content)
    except (OSError, ValueError, TypeError):
        return None


def is_stale(path: Path, owner: Owner, now: float) -> bool:
    """Whether the process behind a claim is gone, or on another machine silent for too long.

    Args:
        path: The claim.
        owner: Who made it.
        now: The file system's clock, in seconds.
    """
    if owner.host == _host():
        return not _is_alive(owner)
    with suppress(OSError):
        return now - path.stat().st_mtime > SILENT_S
    return True


def _is_alive(owner: Owner) -> bool:
    try:
        process = psutil.Process(owner.pid)
        # A number is used again for another process after a while.
        is_same = float(process.create_time()) <= owner.started + _CLOCK_STEP_S
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _host() -> str:
    # Containers may share a name, and then the numbers of one mean nothing in the other.
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{space}"


def _now(lock: Path) -> float:
    """The clock that the time stamps of the folder come from, which may be a file server's."""
    os.utime(lock)
    return lock.stat().st_mtime


def _require_shareable(mine: Owner, other: Owner, out: Path) -> None:
    who = f"process {other.pid} on {other.host.partition('/')[0]}"
    if not _modes_fit(mine.mode, other.mode):
        raise InputError(
            "one run at a time may write to a folder, unless all were started with --resume",
            received=f"a living one, {who}, {_shown(other.mode)}",
            remedy="wait for it or choose another --out; to share the work start every process with --resume",
            where=out,
            code="folder-claimed",
        )
    if mine.settings_sha256 != other.settings_sha256:
        raise InputError(
            "runs that share a folder must have the same models and settings",
            received=f"others than those of {who}",
            remedy="wait for it, or choose another --out",
            where=out,
            code="folder-claimed-differently",
        )


def _modes_fit(mine: str, other: str) -> bool:
    if mine == other == "resume":
        return True
    is_shards = mine.startswith("shard ") and other.startswith("shard ")
    return is_shards and mine != other and mine.partition("/")[2] == other.partition("/")[2]


def _shown(mode: str) -> str:
    return {"alone": "without --resume", "resume": "with --resume"}.get(mode, f"with --{mode}")
