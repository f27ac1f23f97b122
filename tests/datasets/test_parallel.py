"""Work on many cases: in order, with what went wrong, and never more processes than the memory bears."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import psutil
import pytest

from sparseg.datasets import parallel
from sparseg.datasets.parallel import map_items, stream_items, workers_for
from sparseg.errors import DatasetError, VolumeError


def square(number: int) -> int:
    return number * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise VolumeError("three is refused", received=number, remedy="take four", code="three")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number


@pytest.mark.parametrize("workers", [None, 1])
def test_results_are_in_order(workers: int | None) -> None:
    done: list[int] = []
    assert map_items(square, range(5), workers=workers, on_done=done.append) == [0, 1, 4, 9, 16]
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_workers_give_the_same_and_their_errors_arrive() -> None:
    done: list[int] = []
    assert map_items(square, range(9), workers=2, on_done=done.append) == [n * n for n in range(9)]
    assert sorted(done) == list(range(9))
    assert list(stream_items(square, range(9), workers=2)) == [n * n for n in range(9)]
    with pytest.raises(VolumeError, match="three is refused") as error:
        map_items(refuse_three, range(9), workers=2)
    assert error.value.code == "three"


def process_of(_: int) -> int:
    return os.getpid()


@pytest.mark.slow
def test_few_items_start_workers_only_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "workers_for", lambda _: 2)
    assert set(map_items(process_of, range(3))) == {os.getpid()}
    assert os.getpid() not in map_items(process_of, range(3), bytes_each=2**30)


@pytest.mark.slow
def test_t4_a_killed_worker_ends_the_work_at_once_and_says_why() -> None:
    """Row T4: abort within 30 s, with a text that names memory and worker."""
    began = time.monotonic()
    with pytest.raises(DatasetError, match=r"worker process.*lack of memory.*--workers 1") as error:
        map_items(die_at_three, range(9), workers=2)
    assert error.value.code == "worker-killed"
    assert time.monotonic() - began < 30


def test_large_cases_are_read_by_fewer_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "default_workers", lambda: 16)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * 2**30))
    assert [workers_for(size) for size in (0, 2**28, 2**30, 2**31, 2**40)] == [16, 16, 7, 3, 1]
