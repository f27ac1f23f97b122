"""The C library's allocator, told to keep what a training step frees: the next step takes as much again."""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's malloc.h. By default blocks above 32 MiB at the most are returned to the system when freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for itself until it ends.

    Otherwise the system maps, clears and unmaps the pages of every large tensor anew. Without that a step on
    two CPU threads took 0.6 of the time, and the peak of memory was 15 to 25 % higher
    (benchmarks/2026-11-22-allocator.json). To be called once, before training, by a process whose main work
    that is.

    Returns:
        Whether it was done; not with another C library than glibc, or where the environment already tunes it.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OF_THE_USER):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(kind, _NEVER) == 1 for kind in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
