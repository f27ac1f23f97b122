"""Looks at a network from outside while its windows run: where the time goes and which tokens stay."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparseg.models.encoder import EncoderOutput
from sparseg.models.network import Network
from sparseg.shapes import Triple


class NetworkWatch:
    """Hooks on a network's parts, while the context is open.

    Args:
        net: The network.
        shape: (H, W, D) of the volume on the model grid, to map tokens of a network with an encoder;
            None maps none.

    Attributes:
        seconds: Time in `encode`, `assemble` and `decode`.
    """

    def __init__(self, net: Network, shape: Triple | None = None) -> None:
        self.seconds = {"encode": 0.0, "assemble": 0.0, "decode": 0.0}
        self._parts = net.parts()
        self._is_cuda = next(net.parameters()).is_cuda
        self._started: dict[str, float] = {}
        self._handles: list[RemovableHandle] = []
        self._last: EncoderOutput | None = None
        patch = net.config.patch_size
        self._map = None
        if shape is not None and patch is not None and self._parts["encode"] is not None:
            self._map = TokenMap(shape, patch, net.config.roi_size)

    def __enter__(self) -> NetworkWatch:
        for name, part in self._parts.items():
            if part is not None:
                self._handles += [
                    part.register_forward_pre_hook(self._starter(name)),
                    part.register_forward_hook(self._stopper(name)),
                ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def place(self, starts: Sequence[Triple]) -> None:
        """Say where the windows of the last batch began, in voxels of the volume; may be negative."""
        encoded, self._last = self._last, None
        if self._map is not None and encoded is not None:
            self._map.add(starts, [group.indices.cpu().numpy() for group in encoded.stages])

    def forget(self) -> None:
        """Drop what a call of the network left that failed and is repeated."""
        self._last = None

    @property
    def depth(self) -> np.ndarray | None:
        """Map of `WindowResult.depth`, or None if none was asked for."""
        return None if self._map is None else self._map.depth

    def _now(self) -> float:
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _starter(self, name: str) -> Any:
        def start(module: nn.Module, inputs: Any) -> None:  # noqa: ARG001
            self._started[name] = self._now()

        return start

    def _stopper(self, name: str) -> Any:
        def stop(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            self.seconds[name] += self._now() - self._started[name]
            # Of mirrored runs the first is the window itself.
            if name == "encode" and self._last is None:
                self._last = output

        return stop


class TokenMap:
    """How far the token of each patch of a volume came, from windows that begin anywhere.

    Where windows overlap, the one whose centre is nearest is shown, as it also decides most of the voxel.

    Args:
        shape: (H, W, D) of the volume.
        patch: Patch edges in voxels.
        roi: Window edges in voxels.
    """

    def __init__(self, shape: Triple, patch: Triple, roi: Triple) -> None:
        self._patch = patch
        self._grid = tuple(edge // side for edge, side in zip(roi, patch, strict=True))
        size = [-(-edge // side) for edge, side in zip(shape, patch, strict=True)]
        self.depth = np.zeros(size, dtype=np.uint8)
        self._nearness = np.zeros(size, dtype=np.float32)
        axes = [1 - np.abs(np.linspace(-1, 1, n + 2)[1:-1]) for n in self._grid]
        self._window_nearness = np.einsum("i,j,k->ijk", *axes).astype(np.float32)

    def add(self, starts: Sequence[Triple], groups: Sequence[np.ndarray]) -> None:
        """Enter a batch: first voxel of each window, and the grid positions of each group, survivors last."""
        for row, start in enumerate(starts):
            came = np.zeros(int(np.prod(self._grid)), dtype=np.uint8)
            for stage, indices in enumerate(groups, start=1):
                came[indices[row]] = stage
            self._enter(start, came.reshape(self._grid))

    def _enter(self, start: Triple, came: np.ndarray) -> None:
        here, there = [], []
        for first, side, count, size in zip(start, self._patch, self._grid, self.depth.shape, strict=True):
            # The cell that holds a token's middle: one cell each, since both lattices have the same step.
            cell = (2 * first + side) // (2 * side)
            low, high = max(cell, 0), min(cell + count, size)
            here.append(slice(low, high))
            there.append(slice(low - cell, high - cell))
        nearer = self._window_nearness[tuple(there)] > self._nearness[tuple(here)]
        self.depth[tuple(here)][nearer] = came[tuple(there)][nearer]
        self._nearness[tuple(here)][nearer] = self._window_nearness[tuple(there)][nearer]
