"""Where cache entries lie, how they come and go: never half at their final name, never built twice at once.

`FOLDER/KK/KEY/` is an entry, KK the first two letters of its key. Beside it may lie, while it is being built,
`.KEY.lock` and `.KEY.HOST-PID-RANDOM.part/`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from sparseg.datasets.cache_arrays import forget_open_files

# Not on Windows: there two processes may do the same work, and one result is discarded.
fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

_SHARD = re.compile(r"[0-9a-f]{2}")
_KEY = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"\.(?P<key>[0-9a-f]{64})\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.part")
_LOCK = re.compile(r"\.(?P<key>[0-9a-f]{64})\.lock")
_STALE_S = 3600


class CacheSize(NamedTuple):
    """Number of entries and the bytes of all their files."""

    num_cases: int
    num_bytes: int


def entry_folder(folder: Path, key: str) -> Path:
    """Final place of an entry."""
    return folder / key[:2] / key


class Lock(Enum):
    """Outcome of asking for a lock."""

    HELD = "held by this process"
    BUSY = "held by another process"
    UNSUPPORTED = "the system has no such locks"


@contextmanager
def locked(folder: Path, key: str, *, wait: bool = True) -> Iterator[Lock]:
    """Hold the lock of a key; its file goes when the lock does, and the lock goes with the process.

    Args:
        folder: The cache; the key's part of it exists.
        key: What to lock.
        wait: Wait for another process; otherwise the outcome is `BUSY`.
    """
    path = folder / key[:2] / f".{key}.lock"
    outcome, handle = _acquire(path, wait=wait)
    try:
        yield outcome
    finally:
        if handle is not None:
            # Removed while still held: whoever waits for this file sees that it is gone and takes a new one.
            with suppress(OSError):
                path.unlink()
            os.close(handle)


def _acquire(path: Path, *, wait: bool) -> tuple[Lock, int | None]:
    if fcntl is None:
        return Lock.UNSUPPORTED, None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(path, handle):
                return Lock.HELD, handle
            os.close(handle)
        except BlockingIOError:
            os.close(handle)
            return Lock.BUSY, None
        except OSError:  # a file system without locks
            os.close(handle)
            with suppress(OSError):
                path.unlink()
            return Lock.UNSUPPORTED, None


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def new_part(folder: Path, key: str) -> Path:
    """Create an empty folder to build an entry in."""
    part = folder / key[:2] / f".{key}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
    part.mkdir(parents=True)
    return part


def publish(part: Path, final: Path) -> bool:
    """Give a complete entry its final name; False if there is one already, and then nothing changes."""
    sync_folder(part)
    try:
        part.rename(final)
    except OSError:
        if not final.exists():
            raise
        return False
    sync_folder(final.parent)
    return True


def discard(path: Path) -> None:
    """Remove an entry or part; an entry disappears in one step, not file by file."""
    forget_open_files()
    doomed = path
    if _KEY.fullmatch(path.name):
        doomed = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
        with suppress(FileNotFoundError):
            path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what processes left behind that were killed while building."""
    for path in _members(folder, _PART):
        with suppress(OSError):  # a cache that may only be read
            _sweep_part(folder, path)
    for path in _members(folder, _LOCK):
        # Leaving removes the file, unless someone holds it.
        with suppress(OSError), locked(folder, path.name[1:65], wait=False):
            pass


def _sweep_part(folder: Path, path: Path) -> None:
    match = _PART.fullmatch(path.name)
    assert match is not None
    with locked(folder, match["key"], wait=False) as lock:
        # Where locks work, a part whose lock is free has no builder.
        dead = lock is Lock.UNSUPPORTED and _looks_dead(path, match["host"], int(match["pid"]))
        if lock is Lock.HELD or dead:
            shutil.rmtree(path, ignore_errors=True)


def _looks_dead(part: Path, host: str, pid: int) -> bool:
    try:
        age = time.time() - part.stat().st_mtime
    except FileNotFoundError:
        return False
    return age > _STALE_S or (host == _host() and not _is_running(pid))


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 would end the process on Windows
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def cache_size(folder: Path) -> CacheSize:
    """Count the entries of a cache folder and their bytes; (0, 0) if there is none."""
    entries = list(_members(folder, _KEY))
    total = 0
    for entry in entries:
        with suppress(FileNotFoundError):
            total += sum(file.stat().st_size for file in entry.iterdir())
    return CacheSize(len(entries), total)


def clear_cache(folder: Path) -> CacheSize:
    """Remove all entries that are not being built, and nothing that is not of the cache.

    Returns:
        What was removed.
    """
    before = cache_size(folder)
    sweep(folder)
    for entry in list(_members(folder, _KEY)):
        with locked(folder, entry.name, wait=False) as lock:
            if lock is not Lock.BUSY:
                discard(entry)
    if folder.is_dir():
        for shard in folder.iterdir():
            if _SHARD.fullmatch(shard.name):
                with suppress(OSError):  # not empty
                    shard.rmdir()
    after = cache_size(folder)
    return CacheSize(before.num_cases - after.num_cases, before.num_bytes - after.num_bytes)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable, where the system allows folders to be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _members(folder: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    """Paths of a kind in all shards; other files and folders are none of the cache's business."""
    if not folder.is_dir():
        return
    for shard in sorted(folder.iterdir()):
        if _SHARD.fullmatch(shard.name) and shard.is_dir():
            yield from sorted(path for path in shard.iterdir() if pattern.fullmatch(path.name))


def _host() -> str:
    """Tells hosts of a shared file system apart without naming them."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
