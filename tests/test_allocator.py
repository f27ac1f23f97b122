"""Freed memory stays with a process that trains, and with one that predicts until the windows are done."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from sparseg import allocator
from sparseg.allocator import keep_freed_memory, memory_reused
from sparseg.cli.main import run as run_command

linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are counted by Linux")

# Pages that the system maps anew for each of 20 large blocks, freed before the next is taken; the first few,
# which come before the heap has grown, do not count.
HEAD = """
import resource, sys
import torch
from sparseg.allocator import keep_freed_memory, memory_reused
from sparseg.predict.machine import resident_bytes
def faults():
    count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(2**24).fill_(1)
    before = count()
    for _ in range(20):
        torch.empty(2**24).fill_(1)
    return (count() - before) / 20
"""
TRAINS = HEAD + "print(keep_freed_memory(), faults())"
PREDICTS = (
    HEAD
    + """
before = resident_bytes()
with memory_reused():
    with memory_reused():
        torch.empty(2**24).fill_(1)
    inside, held = faults(), resident_bytes()
print(inside, (held - before) // 2**20, (resident_bytes() - before) // 2**20)
"""
)
# A block of 64 MiB has 16384 pages of 4 KiB, 32 of 2 MiB.
FEW = 16


def run(script: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.split()


@linux
def test_large_blocks_are_not_mapped_anew() -> None:
    was_set, faults = run(TRAINS)
    assert was_set == "True"
    assert float(faults) < FEW


@linux
def test_windows_take_what_was_freed_and_give_it_back_at_the_end() -> None:
    inside, held, after = run(PREDICTS)
    assert float(inside) < FEW
    # All blocks were freed, and the process holds some of them all the same (up to seven, as the splinters
    # that alignment leaves fill glibc's cache for threads first); afterwards it does not.
    assert 60 <= int(held) <= 8 * 64
    assert int(after) <= 8


@linux
def test_what_the_user_set_stays() -> None:
    assert run(TRAINS, MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
    assert run(TRAINS, GLIBC_TUNABLES="glibc.malloc.tcache_count=7")[0] == "False"
    assert float(run(PREDICTS, MALLOC_TOP_PAD_="131072")[0]) > FEW


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
    with memory_reused():
        assert allocator._users == 0


def test_the_last_to_leave_gives_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def function(name: str):
        return lambda *values: calls.append(f"{name}{values}") or 1

    monkeypatch.setattr(allocator, "_function", function)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with memory_reused():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with memory_reused():
        thread.start()
        assert entered.wait(10)
    assert [call.partition("(")[0] for call in calls] == ["mallopt", "mallopt"]
    leave.set()
    thread.join()
    assert [call.partition("(")[0] for call in calls[2:]] == ["mallopt", "mallopt", "malloc_trim"]


def test_every_command_that_trains_does_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: calls.append(1))
    none, out = str(tmp_path / "none"), str(tmp_path / "out")
    for command in (["train", none], ["pretrain", none], ["sparsify", none, none]):
        assert run_command([*command, "--out", out]) == 2
    assert len(calls) == 3
