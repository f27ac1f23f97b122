"""The C library's allocator, told to keep what a network frees: the next step or window takes as much again.

By default glibc maps large blocks anew each time, and the system clears their pages one by one. The settings
are the process's, so callers are commands and what they run; a user who tunes the allocator is left alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
# Where glibc's own, dynamic rule ends up once blocks of 32 MiB were freed.
_USUAL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
# Feature maps of a batch of windows are smaller, sums of a volume's logits mostly not.
_LARGEST_REUSED = 256 * 2**20
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")

_lock = threading.Lock()
_users = 0
_kept_for_good = False


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for itself until it ends.

    A training step on two CPU threads took 0.6 of the time, and the peak of memory was 15 to 25 % higher
    (benchmarks/2026-11-22-allocator.json). To be called once, before training, by a process whose main work
    that is.

    Returns:
        Whether it was done; not with another C library than glibc, or where the environment already tunes it.
    """
    global _kept_for_good
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    with _lock:
        _kept_for_good = all(mallopt(kind, _NEVER) == 1 for kind in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
    return _kept_for_good


@contextmanager
def memory_reused() -> Iterator[None]:
    """While it lasts, blocks up to 256 MiB are taken from memory freed before; then all is given back.

    Threads and nested calls share it: memory is given back when the last one leaves.
    """
    mallopt, trim = _function("mallopt"), _function("malloc_trim")
    if mallopt is None or trim is None or _kept_for_good:
        yield
        return
    _enter(mallopt)
    try:
        yield
    finally:
        _leave(mallopt, trim)


def _enter(mallopt: Callable[..., int]) -> None:
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            mallopt(_MMAP_THRESHOLD, _LARGEST_REUSED)
            mallopt(_TRIM_THRESHOLD, _NEVER)


def _leave(mallopt: Callable[..., int], trim: Callable[..., int]) -> None:
    global _users
    with _lock:
        _users -= 1
        if not _users and not _kept_for_good:
            for kind, threshold in _USUAL.items():
                mallopt(kind, threshold)
            trim(0)


def _function(name: str) -> Callable[..., int] | None:
    """A function of glibc; None with another C library, or where the environment tunes the allocator."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OF_THE_USER):
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
