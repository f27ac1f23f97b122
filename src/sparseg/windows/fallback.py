"""Runs windows and sums them up, and when memory runs out goes on with less of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sparseg.errors import ResourceError
from sparseg.windows.sums import HOST, WeightedSums

logger = logging.getLogger("sparseg")
T = TypeVar("T")
# Where torch raises a plain RuntimeError: its allocator for the CPU, and libraries that allocate themselves.
_TEXTS = (
    "DefaultCPUAllocator: not enough memory",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


class WindowRunner:
    """Runs a network on windows and sums up its logits, with less and less memory where it runs out.

    In this order: half as many windows per call, down to one; the sums on the host; the network on the CPU;
    the sums in a file. A step that failed is repeated; no window is lost or counted twice.

    Args:
        network: `[B, C, *roi] -> [B, K, *roi]`.
        make_sums: Makes the sums for K channels, on a device, in a file or not.
        batch_size: Windows per call of `network`.
        device: Where the network runs.
        sums_device: Where the sums lie.
        to_cpu: Moves the network to the CPU; None if it cannot be moved.
        on_fallback: Called with what was changed, once per change, before a step is repeated; None logs it.

    Attributes:
        batch_size: Windows per call from now on.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        make_sums: Callable[[int, torch.device, bool], WeightedSums],
        *,
        batch_size: int = 1,
        device: torch.device | str = HOST,
        sums_device: torch.device | str = HOST,
        to_cpu: Callable[[], object] | None = None,
        on_fallback: Callable[[str], None] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self._network, self._make_sums = network, make_sums
        self._device, self._sums_device = torch.device(device), torch.device(sums_device)
        self._to_cpu = to_cpu
        self._say = on_fallback or logger.warning
        self._in_file = False
        self._sums: WeightedSums | None = None

    def logits(self, cut: Callable[[int], Tensor]) -> Tensor:
        """Run the network on the next windows.

        Args:
            cut: Gives the next windows `[B, C, *roi]` on the CPU, at most as many as it is asked for.

        Returns:
            float32 `[B, K, *roi]`, perhaps of fewer windows than the batch size was before.

        Raises:
            ResourceError: memory does not suffice for one window on the CPU.
        """
        while True:
            found = _attempt(lambda: self._forward(cut(self.batch_size)))
            if found is not None:
                return found
            self._relieve_network()

    def add(self, start: tuple[int, int, int], logits: Tensor) -> None:
        """Add one window's logits `[K, *roi]`.

        Raises:
            ResourceError: no room for the sums.
        """
        while not _attempt(lambda: self._put(start, logits)):
            self._relieve_sums()

    def mean(self, num_channels: int | None = None, uncovered: Sequence[float] | None = None) -> Tensor:
        """Logits `[K, H, W, D]` on the CPU; see `WeightedSums.mean`.

        Args:
            num_channels: K, where no window was added.
            uncovered: K logits of the voxels that no window covers; needed if there are any.

        Raises:
            ResourceError: no room for the sums.
        """
        while (found := _attempt(lambda: self._made(num_channels or 0).mean(uncovered))) is None:
            self._relieve_sums()
        if self._sums_device != HOST:
            self._move_sums()
            found = self._made(0).values
        return found

    def _forward(self, windows: Tensor) -> Tensor:
        return self._network(windows.to(self._device)).float().to(self._sums_device)

    def _made(self, num_channels: int) -> WeightedSums:
        if self._sums is None:
            self._sums = self._make_sums(num_channels, self._sums_device, self._in_file)
        return self._sums

    def _put(self, start: tuple[int, int, int], logits: Tensor) -> bool:
        self._made(len(logits)).add(start, logits)
        return True

    def _relieve_network(self) -> None:
        if self.batch_size > 1:
            self.batch_size //= 2
            self._changed(f"{self.batch_size} window{'s' if self.batch_size > 1 else ''} at a time")
        elif self._sums_device != HOST:
            self._changed("sums on the host")
            self._move_sums()
        elif self._device != HOST and self._to_cpu is not None:
            self._to_cpu()
            self._changed("network on the CPU")
            self._device = HOST
        else:
            self._relieve_sums()

    def _relieve_sums(self) -> None:
        if self._sums_device != HOST:
            self._changed("sums on the host")
            self._move_sums()
        elif not self._in_file:
            self._changed("sums in a temporary file")
            self._in_file = True
            self._move_sums()
        else:
            raise self._exhausted()

    def _exhausted(self) -> ResourceError:
        return ResourceError(
            "one window at a time and its sums must fit into memory",
            received=f"out of memory on {self._device}",
            remedy="close other programs, or use a machine with more memory",
            code="out-of-memory",
        )

    def _changed(self, what: str) -> None:
        self._say(f"out of memory: going on with {what}")
        # Free blocks of the wrong size are of no use to anyone until they are given back.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _move_sums(self) -> None:
        """Move what is summed to the host, and there into a file if memory does not suffice."""
        self._sums_device = HOST
        if self._sums is None:
            return
        sums = self._sums
        while (moved := _attempt(lambda: sums.on_host(in_file=self._in_file))) is None:
            if self._in_file:
                raise self._exhausted()
            self._changed("sums in a temporary file")
            self._in_file = True
        self._sums = moved


def _attempt(step: Callable[[], T]) -> T | None:
    """Result of a step, or None if memory ran out in it; all that the step held is free by then."""
    try:
        return step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None
