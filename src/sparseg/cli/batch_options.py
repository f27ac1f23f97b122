"""Options of `sparseg predict` for many cases: going on, sharing a folder, shares of the work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from sparseg.cli.output import print_error

if TYPE_CHECKING:
    from sparseg.cli.budget_options import BudgetOptions
    from sparseg.cli.predict_options import WindowOptions
    from sparseg.cli.predict_progress import Watcher
    from sparseg.errors import SparsegError
    from sparseg.predict.cleanup import Cleanup
    from sparseg.predict.inputs import PredictionCase
    from sparseg.predict.label_files import LabelFiles
    from sparseg.predict.reading import ReadOptions
    from sparseg.predict.settings import PredictSettings
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
    ray
        Number of workers of a fleet, run by Ray (extra `ray`) on this machine or on the cluster that the
        variable RAY_ADDRESS names; each takes one case at a time and one GPU, or --threads CPUs (default 1).
    overlap_cases
        Read the next case and write the last one while the network works on this one. Default: with a GPU; on
        a CPU it pays only where reading waits for a slow disk or network.
    """

    resume: Annotated[bool, cyclopts.Parameter(negative="")] = False
    shard: str | None = None
    ray: int | None = None
    overlap_cases: bool | None = None

    def check(self, rank: Rank | None) -> None:
        """Refuse a fleet of nobody, and one beside other ways to share the work.

        Raises:
            ConfigError: --ray below 1, with --shard, or under a launcher.
        """
        from sparseg.errors import ConfigError

        if self.ray is None or (self.ray >= 1 and self.shard is None and rank is None):
            return
        given = f"--ray {self.ray}{'' if self.shard is None else f' --shard {self.shard}'}"
        raise ConfigError(
            "a fleet must have at least one worker, and takes all cases by itself",
            received=given + ("" if rank is None else " under a launcher of several processes"),
            remedy="e.g. --ray 4, in one process and without --shard",
            where="--ray",
            code="fleet-size",
        )

    def part(self, rank: Rank | None) -> Shard | None:
        """The shard that was asked for, or that of this process under a launcher.

        Raises:
            ConfigError: not a shard.
        """
        from sparseg.predict.shards import parse_shard

        if self.shard is not None:
            return parse_shard(self.shard)
        return None if rank is None else rank.shard

    def limited(self, budget: BudgetOptions) -> BudgetOptions:
        """The same budget; a worker of a fleet has others beside it, and one thread unless told otherwise."""
        return budget if self.ray is None else replace(budget, threads=budget.threads or 1)

    def settings(
        self,
        windows: WindowOptions,
        rank: Rank | None,
        reading: ReadOptions,
        files: LabelFiles,
        cleanup: Cleanup,
    ) -> PredictSettings:
        """All settings of a predictor, with the device of this process, or that of the workers."""
        if self.ray is not None and windows.device == "cuda":  # this machine may be one without
            settings, device = replace(windows, device="cpu").settings(reading, files, cleanup), "cuda"
        else:
            settings = windows.settings(reading, files, cleanup)
            device = device_of_rank(rank, settings.device)
        return replace(settings, device=device, overlap_cases=self.overlap_cases)

    def run_fleet(
        self,
        models: Sequence[Path],
        settings: PredictSettings,
        cases: Sequence[PredictionCase],
        out: Path,
        watcher: Watcher,
        budget: BudgetOptions,
    ) -> list[SparsegError]:
        """Let a fleet do it; each of its workers keeps within the budget for itself."""
        from sparseg.predict.fleet import Fleet, predict_fleet

        fleet = Fleet(self.ray or 1, budget.threads or 1)
        return predict_fleet(
            models, settings, cases, out, watcher, fleet=fleet, resume=self.resume, prepare=budget.prepare
        )


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
