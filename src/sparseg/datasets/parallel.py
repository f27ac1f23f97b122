"""The same function on many cases, in worker processes, results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from sparseg.errors import DatasetError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Starting workers costs about a second; fewer items than this are done sooner without, unless they are large.
_MIN_ITEMS = 8
_LARGE_BYTES = 2**29
# Of the free memory; the rest is for what else the machine does meanwhile.
_MEMORY_SHARE = 0.7


def default_workers() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(bytes_each: int) -> int:
    """Processes whose memory fits into what is free now: at least one, at most one per processor.

    Args:
        bytes_each: Largest memory that one process will take.
    """
    import psutil

    fitting = int(_MEMORY_SHARE * psutil.virtual_memory().available / max(1, bytes_each))
    return max(1, min(default_workers(), fitting))


def map_items(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    bytes_each: int = 0,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """Return `[function(item) for item in items]`.

    Args:
        function: Module-level function (or `functools.partial` of one); what it raises is raised here.
        items: Arguments; must be picklable, as must the results.
        workers: Processes; None takes all processors, or as many as fit the memory. Up to one, or with few
            items, nothing is started.
        bytes_each: Largest memory that one item takes, as far as it is known.
        on_done: Called with an item's index when its result is there, in order of completion.

    Raises:
        DatasetError: a worker process died, which is nearly always lack of memory.
    """
    count = min(workers_for(bytes_each) if workers is None else workers, len(items))
    is_little = len(items) < _MIN_ITEMS and bytes_each < _LARGE_BYTES
    if count <= 1 or (workers is None and is_little):
        results = []
        for index, item in enumerate(items):
            results.append(function(item))
            on_done(index)
        return results
    # spawn: a fork would copy the locks of a process that may already run threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_quiet_worker) as pool:
        try:
            return _collect(pool, function, items, on_done)
        finally:
            # All is done, or an error or Ctrl-C makes the rest pointless.
            pool.shutdown(wait=False, cancel_futures=True)


def stream_items(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int | None = None
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, for results too large to be held all at once.

    Args:
        function: As in `map_items`.
        items: As in `map_items`.
        workers: As in `map_items`; at most two results per process wait for the caller.

    Raises:
        DatasetError: a worker process died, which is nearly always lack of memory.
    """
    count = min(default_workers() if workers is None else workers, len(items))
    if count <= 1 or (workers is None and len(items) < _MIN_ITEMS):
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_quiet_worker) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == 2 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise _killed() from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _collect(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    on_done: Callable[[int], None],
) -> list[Result]:
    futures: dict[Future[Result], int] = {
        pool.submit(function, item): index for index, item in enumerate(items)
    }
    try:
        for future in as_completed(futures):
            future.result()
            on_done(futures[future])
    except BrokenProcessPool:
        raise _killed() from None
    return [future.result() for future in futures]


def _killed() -> DatasetError:
    return DatasetError(
        "every worker process must finish",
        received="one was killed, most likely for lack of memory",
        remedy="use fewer workers (--workers 1), or close other programs",
        code="worker-killed",
    )


def _quiet_worker() -> None:
    """Ctrl-C goes to the whole process group: only the parent answers it. A worker ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers, who would wait for work for ever and keep their memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
