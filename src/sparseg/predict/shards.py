"""Which cases are this process's own where several were started side by side; reads the ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sparseg.errors import ConfigError
from sparseg.predict.inputs import PredictionCase

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_PATIENCE = timedelta(days=7)  # of a process with little to do for the slowest one
_FAREWELL = timedelta(minutes=1)


@dataclass(frozen=True)
class Shard:
    """Every n-th case.

    Attributes:
        index: Which of the shards, from 1.
        count: Their number.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, cases: Sequence[PredictionCase]) -> list[PredictionCase]:
        """The cases of this shard, by name; all shards together have each case once."""
        return sorted(cases, key=lambda case: case.name)[self.index - 1 :: self.count]


def parse_shard(text: str) -> Shard:
    """The shard that is written as `2/8`.

    Raises:
        ConfigError: not of this form, or an index outside 1 to the number of shards.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    if not 1 <= shard.index <= shard.count:
        raise ConfigError(
            "a shard is i/n with 1 <= i <= n",
            received=repr(text),
            remedy="e.g. --shard 1/4 to --shard 4/4 in four processes",
            where="--shard",
        )
    return shard


@dataclass(frozen=True)
class Rank:
    """This process among those that torchrun, or a launcher that sets its variables, started.

    Attributes:
        number: From 0, over all machines.
        count: Of all processes.
        local: From 0, on this machine.
        attempt: How often the launcher has restarted all of them.
        has_meeting_point: Whether the launcher says where the processes can reach each other.
    """

    number: int
    count: int
    local: int
    attempt: int = 0
    has_meeting_point: bool = False

    @property
    def shard(self) -> Shard:
        """The cases of this process."""
        return Shard(self.number + 1, self.count)

    def device(self, wanted: str, num_gpus: int) -> str:
        """The GPU of this process where CUDA is wanted; more processes than GPUs share them."""
        return f"cuda:{self.local % num_gpus}" if wanted == "cuda" and num_gpus else wanted


def find_rank(environment: Mapping[str, str]) -> Rank | None:
    """What the launcher's variables say; None for a process that was started by itself."""
    number, count = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not (number.isdecimal() and count.isdecimal() and int(count) > 1):
        return None
    return Rank(
        int(number),
        int(count),
        int(environment.get("LOCAL_RANK", "0")),
        int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
        "MASTER_ADDR" in environment and "MASTER_PORT" in environment,
    )


def wait_for_ranks(rank: Rank) -> None:
    """Wait until all processes are done.

    torchrun ends all others as soon as one ends with an exit code, and the code of one bad case must not
    cost the cases of the other processes.
    """
    if not rank.has_meeting_point:
        return
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    store, number, count = next(rendezvous("env://", timeout=_PATIENCE))
    store = PrefixStore(f"sparseg_predict_{rank.attempt}", store)
    _meet(store, "done", count, _PATIENCE)
    # The first process may hold the meeting point itself, and must not take it away from the others.
    if number == 0:
        _meet(store, "left", count, _FAREWELL)
    else:
        _arrive(store, "left", count)


def _arrive(store: Store, name: str, count: int) -> None:
    if store.add(name, 1) == count:
        store.set(f"all_{name}", "yes")


def _meet(store: Store, name: str, count: int, patience: timedelta) -> None:
    _arrive(store, name, count)
    store.wait([f"all_{name}"], patience)
