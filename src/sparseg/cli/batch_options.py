"""Options of `sparseg predict` for many cases: going on, sharing a folder, shares of the work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from sparseg.cli.output import print_error

if TYPE_CHECKING:
    from sparseg.predict.shards import Rank, Shard

EXIT_TERMINATED = 128 + 15


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class BatchOptions:
    """How many cases are worked on.

    Parameters
    ----------
    resume
        Leave cases alone that are done: labels, input, model and settings are those of their row. Any number
        of processes started so with the same command share the work in one folder.
    shard
        Only every n-th case, e.g. 2/8: the second of eight shards, which may write to one folder at once.
        Under torchrun each process takes its own.
    """

    resume: Annotated[bool, cyclopts.Parameter(negative="")] = False
    shard: str | None = None

    def part(self, rank: Rank | None) -> Shard | None:
        """The shard that was asked for, or that of this process under a launcher.

        Raises:
            ConfigError: not a shard.
        """
        from sparseg.predict.shards import parse_shard

        if self.shard is not None:
            return parse_shard(self.shard)
        return None if rank is None else rank.shard


def current_rank() -> Rank | None:
    """This process among those of a launcher; None for one that was started by itself."""
    from sparseg.predict.shards import find_rank

    return find_rank(os.environ)


def device_of_rank(rank: Rank | None, wanted: str) -> str:
    """The device of this process."""
    if rank is None:
        return wanted
    import torch

    return rank.device(wanted, torch.cuda.device_count())


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Turn SIGTERM into an orderly end with exit code 143, as Ctrl-C is one with 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    # A second one, from who lost patience, ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print_error("terminated; files already complete are kept")
    raise SystemExit(EXIT_TERMINATED)
