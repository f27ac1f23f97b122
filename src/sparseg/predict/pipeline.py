"""Three steps over many items, overlapping: while one is worked on, the next loads and the last finishes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Worked = TypeVar("Worked")


def run_steps(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    work: Callable[[Loaded], Worked],
    finish: Callable[[Worked], None],
    *,
    overlap: bool = True,
) -> None:
    """Take every item through the three steps; each step sees the items in order.

    Args:
        items: What to do.
        load: First step, in a thread of its own, at most one item ahead.
        work: Second step, in the calling thread.
        finish: Last step, in a thread of its own, at most one item behind.
        overlap: Otherwise one item after another, in the calling thread alone, with one in memory.

    An error of any step, or an interruption, ends the run once the steps that have begun are done.
    """
    if not overlap:
        for item in items:
            finish(work(load(item)))
        return
    remaining = iter(items)
    # Closed in reverse order; at most one call waits in each, and it has begun.
    with ThreadPoolExecutor(1, "sparseg-write") as writer, ThreadPoolExecutor(1, "sparseg-read") as reader:
        finishing: Future[None] | None = None
        loading = _next(reader, load, remaining)
        while loading is not None:
            loaded = loading.result()
            loading = _next(reader, load, remaining)
            worked = work(loaded)
            del loaded
            if finishing is not None:
                finishing.result()
            finishing = writer.submit(finish, worked)
            del worked
        if finishing is not None:
            finishing.result()


def _next(
    reader: ThreadPoolExecutor, load: Callable[[Item], Loaded], items: Iterable[Item]
) -> Future[Loaded] | None:
    for item in items:
        return reader.submit(load, item)
    return None
