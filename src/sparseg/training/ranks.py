"""What several processes do in turn, share, or must agree on. With one process everything is what it was.

Two groups connect the processes: the default one for training steps, whose timeout is short, and a patient
one for what takes each of them another time (reading, preparing, validating, writing).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import PartialState
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sparseg.errors import ConfigError, ResourceError

Result = TypeVar("Result")
# A process that dies is noticed at once; these are for one that hangs.
STEP_TIMEOUT, PATIENT_TIMEOUT = timedelta(minutes=10), timedelta(days=2)
PEER_FAILED, PEER_LOST = "peer-failed", "peer-lost"
_LAST_TURN = 2


def started_as_one_of_several() -> bool:
    """Whether torchrun (or another launcher that sets its variables) started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch_command() -> str:
    """What stands before `sparseg` in the command line that started this process."""
    if not started_as_one_of_several():
        return ""
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', 'N')} -m "


def num_restarts() -> int:
    """How often torchrun has restarted the processes of this job."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def world() -> int:
    """Number of processes that are connected."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; 0 is the main one."""
    return dist.get_rank() if world() > 1 else 0


def join() -> None:
    """Connect the processes that a launcher started; nothing where there is one, or where it is done.

    GPUs talk through NCCL, processors through gloo.
    """
    if not started_as_one_of_several() or dist.is_initialized():
        return
    has_gpu = torch.cuda.is_available()
    store, number, total = next(rendezvous("env://", timeout=STEP_TIMEOUT))
    # A restart may meet the store of the attempt before, with the addresses of processes that are gone.
    store = dist.PrefixStore(f"attempt_{num_restarts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(
        "nccl" if has_gpu else "gloo", store=store, rank=number, world_size=total, timeout=STEP_TIMEOUT
    )
    # Accelerate would take each process for a lonely one where there is no GPU, unless told to use the CPU.
    PartialState(cpu=not has_gpu)
    _patient()


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes of a command, and part at the end; after an error they just end.

    Raises:
        ResourceError: another process died or no longer answers.
        SystemExit: another process failed and has said why.
    """
    join()
    if rank():
        logging.getLogger("sparseg").setLevel(logging.ERROR)  # the main process warns for all
    try:
        yield
    except ResourceError as error:
        if error.code == PEER_FAILED:
            raise SystemExit(1) from None
        raise
    except RuntimeError as error:
        if world() > 1 and _is_lost_connection(error):
            raise _peer_error("a connection that is broken or silent", PEER_LOST) from error
        raise
    if world() > 1:
        _wait()
        _patient.cache_clear()
        PartialState().destroy_process_group()


def require_precision(precision: str) -> None:
    """Refuse mixed precision on a CPU, whose convolutions get gradients of any size from it.

    Raises:
        ConfigError: another precision than fp32, and no other device.
    """
    join()
    if precision != "fp32" and PartialState().device.type == "cpu":
        raise ConfigError(
            "on a CPU a network must be trained in fp32",
            received=precision,
            remedy="--set precision=fp32, or train on a GPU",
            where="precision",
            code="cpu-precision",
        )


def make_accelerator(precision: str) -> Accelerator:
    """The device of this process, and what wraps network and optimiser for several.

    Raises:
        ConfigError: a precision that the device does not train in.
    """
    require_precision(precision)
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    if world() == 1:
        return Accelerator(mixed_precision=mixed)
    return Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())


def of_main_process(make: Callable[[], Result]) -> Result:
    """Call `make` in the main process only and hand its result to all.

    Raises:
        ResourceError: in the other processes, where `make` failed.
    """
    if world() == 1:
        return make()
    box: list[Any] = [False, None]
    try:
        if rank() == 0:
            box = [True, make()]
    finally:
        # The others wait here: they must learn of a failure too.
        dist.broadcast_object_list(box, src=0, group=_patient())
    _require_peers([bool(box[0])])
    result: Result = box[1]
    return result


def in_turns(work: Callable[[], Result]) -> Result:
    """Call `work` in the main process, then in the first process of each other machine, then in the rest.

    What the first one writes the next ones find, whether or not the machines share a disk.

    Raises:
        ResourceError: another process failed at its turn.
    """
    if world() == 1:
        return work()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    mine = 0 if rank() == 0 else 1 if local_rank == 0 else _LAST_TURN
    results: list[Result] = []
    for turn in range(_LAST_TURN + 1):
        is_done: list[bool] = [False] * world()
        try:
            if turn == mine:
                results.append(work())
        finally:
            dist.all_gather_object(is_done, turn != mine or bool(results), group=_patient())
        _require_peers(is_done)
    return results[0]


def gather_from_all(value: Result) -> list[Result]:
    """The values of all processes, in their order; waits for the slowest as long as it takes."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=_patient())
    return values


def wait_for_all() -> None:
    """Wait for the slowest process as long as it takes."""
    if world() > 1:
        _wait()


def mean_over_ranks(accelerator: Accelerator, value: Tensor) -> float:
    """Mean of a scalar tensor over all processes; NaN if it is NaN anywhere."""
    if accelerator.num_processes == 1:
        return float(value)
    total = value.detach().float().clone()
    dist.all_reduce(total)
    return float(total / accelerator.num_processes)


def largest_over_ranks(accelerator: Accelerator, value: int) -> int:
    """Largest of an integer over all processes, such as the number of a signal that only one received."""
    if accelerator.num_processes == 1:
        return value
    largest = torch.tensor(value, device=accelerator.device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def of_main_rank(accelerator: Accelerator, value: float) -> float:
    """The main process's value, for clocks that must not differ."""
    if accelerator.num_processes == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    dist.broadcast(shared, src=0)
    return float(shared)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over all processes, through which gradients flow.

    A loss that all processes compute from the sum has the right gradient once the gradients of the weights
    are averaged over the processes, as DDP and FSDP do.
    """
    if world() == 1:
        return value
    total: Tensor = _SumOverRanks.apply(value)  # type: ignore[no-untyped-call]
    return total


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators (drop path, selection noise) for one step of one process.

    A step then depends on nothing that happened before it, so that a resumed run is the uninterrupted one.
    """
    # Odd constants spread neighbouring steps and ranks over 63 bits (splitmix64's and another prime).
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
    torch.manual_seed(mixed)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        # Every process computes the same loss from the sum, so their gradients are equal: adding them up is
        # a product. The average over processes takes the factor away again.
        return gradients[0] * world()


@cache
def _patient() -> dist.ProcessGroup:
    """All processes, on the CPU, with patience; made by all of them together."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENT_TIMEOUT)
    return group


def _wait() -> None:
    dist.barrier(group=_patient())


def _require_peers(is_done: list[bool]) -> None:
    if not all(is_done):
        raise _peer_error(f"process {is_done.index(False)} failed", PEER_FAILED)


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _peer_error(received: str, code: str) -> ResourceError:
    """The error of a process that cannot go on because another one failed."""
    return ResourceError(
        "all processes of a run must stay alive",
        received=received,
        remedy="see the message of the process that failed first, then go on with --resume",
        code=code,
    )
