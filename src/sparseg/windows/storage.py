"""Room for large sums: in memory up to a budget, beyond it in nameless temporary files."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from sparseg.errors import ResourceError

_FLOAT_BYTES = 4


class Storage:
    """Makes float32 tensors of zeros on the CPU and keeps those in files from filling the memory.

    A file lies in the folder of `tempfile.gettempdir()`, has no name, and is gone with the last tensor upon
    it. Whoever works on the tensors says so by `touched`, so that their pages go back to the system in time.

    Args:
        max_bytes: Largest tensor to hold in memory, and bytes of those in files that may be in memory at any
            time. None: all tensors in memory.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self._maps: list[weakref.ref[mmap.mmap]] = []
        self._touched = 0

    def zeros(self, shape: Sequence[int], *, in_file: bool = False) -> Tensor:
        """Make a tensor.

        Args:
            shape: Its edges.
            in_file: Put it into a file however small it is.

        Raises:
            ResourceError: no room for the file.
        """
        num_bytes = _FLOAT_BYTES * prod(shape)
        if not in_file and (self.max_bytes is None or num_bytes <= self.max_bytes):
            return torch.zeros(tuple(shape))
        pages = _map_file(num_bytes)
        self._maps.append(weakref.ref(pages))
        return torch.frombuffer(pages, dtype=torch.float32).reshape(tuple(shape))

    @property
    def step_bytes(self) -> int:
        """A good amount to work on between two calls of `touch`."""
        return 2**24 if self.max_bytes is None else max(2**20, self.max_bytes // 4)

    def touch(self, num_bytes: int) -> None:
        """Say that up to so many bytes of the tensors are read or written next."""
        self._touched += num_bytes
        if self._maps and self._touched > (self.max_bytes or 0):
            self.release()
            self._touched = num_bytes

    def touching(self, step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Wrap a function that is called with one part after the other of a tensor made here."""
        if not self._maps:
            return step

        def touched(values: Tensor) -> Tensor:
            self.touch(values.numel() * values.element_size())
            return step(values)

        return touched

    def release(self) -> None:
        """Give all mapped pages back to the system: what lies in a file need not stay in memory."""
        self._touched = 0
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        for reference in self._maps:
            pages = reference()
            if pages is not None:
                # The mapping is shared, so this drops no data: they are read from the file again.
                pages.madvise(mmap.MADV_DONTNEED)


def _map_file(num_bytes: int) -> mmap.mmap:
    """Map a nameless file of zeros, which the system removes even after a crash."""
    try:
        with tempfile.TemporaryFile(prefix="sparseg-sums-") as file:
            file.truncate(num_bytes)
            if hasattr(os, "posix_fallocate"):
                # A full disk must be an error now; writing to a mapping without room kills the process.
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            return mmap.mmap(file.fileno(), num_bytes)
    except OSError as error:
        raise ResourceError(
            "the sums of a volume larger than the memory allowed must fit into a temporary file",
            received=f"{error.strerror or type(error).__name__} for {num_bytes / 2**30:.2f} GiB",
            remedy="set TMPDIR to a folder with more room, or allow more memory",
            where=tempfile.gettempdir(),
            code="sums-file",
        ) from error
